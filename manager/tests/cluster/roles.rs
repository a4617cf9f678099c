//! What users may do, by their certificates and tokens.

use std::time::Duration;

use rcluster_api::error::ErrorCode;
use rcluster_api::identity::JoinToken;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use tower::{Service, ServiceExt};

use crate::support::{self, Cluster, rest, token, user};

#[tokio::test]
async fn users_may_what_their_roles_allow_until_they_are_removed() {
    let cluster = Cluster::found().await;
    let reader = user(&cluster, "eve", v1::UserRole::ReadOnly).await;
    let deployer = user(&cluster, "dan", v1::UserRole::Deploy).await;
    cluster.list(&reader, v1::Kind::Service).await.unwrap();
    let error = cluster.try_write(&reader, "a").await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Forbidden, "user eve has the role read-only; deploying needs deploy"));
    cluster.try_write(&deployer, "a").await.unwrap();
    let mut control = cluster.control(&deployer).await.unwrap();
    let error = control.join_token(v1::JoinTokenRequest { manager: true, rotate: false }).await.unwrap_err();
    assert!(error.message().contains("reading join tokens needs admin"), "{error}");
    let create = v1::CreateUserRequest { name: "x".to_owned(), role: v1::UserRole::Admin.into(), ..v1::CreateUserRequest::default() };
    assert!(control.create_user(create).await.unwrap_err().message().contains("creating a user needs admin"));
    let removal = |kind: v1::Kind, name: &str| v1::RemoveRequest { refs: vec![v1::Ref { kind: kind.into(), name: name.to_owned() }] };
    assert!(control.remove(removal(v1::Kind::User, "admin")).await.unwrap_err().message().contains("removing needs admin"));
    control.remove(removal(v1::Kind::Network, "a")).await.unwrap();
    let mut admin = cluster.control(&cluster.admin).await.unwrap();
    let error = admin.remove(removal(v1::Kind::User, "admin")).await.unwrap_err();
    assert!(error.message().contains("user admin is the last with the role admin"), "{error}");
    admin.remove(removal(v1::Kind::User, "dan")).await.unwrap();
    // Its connection stands, and is worth nothing.
    let error = control.list(v1::ListRequest { kind: v1::Kind::Service.into(), ..v1::ListRequest::default() }).await.unwrap_err();
    assert!(error.message().contains("was it removed?"), "{error}");
    let error = cluster.list(&cluster.admin, v1::Kind::Cluster).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Forbidden);
}

#[tokio::test]
async fn a_stranger_is_refused_before_its_message_has_come() {
    let cluster = Cluster::found().await;
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    let endless = http_body_util::StreamBody::new(tokio_stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, tonic::Status>>());
    let request = http::Request::builder().method("POST").uri("http://manager/rcluster.v1.Control/Apply");
    let request = request.header("content-type", "application/grpc").body(tonic::body::Body::new(endless)).unwrap();
    let mut channel = cluster.connect(&nobody).await.unwrap();
    let answer = channel.ready().await.unwrap().call(request);
    let answer = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("an answer").unwrap();
    assert_eq!(answer.headers()["grpc-status"], "16");
}

#[tokio::test]
async fn rest_takes_tokens_and_certificates_also_by_a_follower() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    let status = cluster.settled(&["m1", "m2", "m3"]).await;
    let reader = token(&cluster, "rita", v1::UserRole::ReadOnly).await;
    let writer = token(&cluster, "will", v1::UserRole::Deploy).await;
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    for manager in &status.managers {
        let addr = [manager.addr.clone()];
        let channel = support::connect(&addr, &nobody).await.unwrap();
        assert_eq!(rest(&channel, "GET", "/healthz", None, "").await, (200, "ok\n".to_owned()));
        let (status, body) = rest(&channel, "GET", "/v1/services", None, "").await;
        assert_eq!(status, 401, "{body}");
        let (status, body) = rest(&channel, "GET", "/v1/services", Some("rct_wrong"), "").await;
        assert!(status == 401 && body.contains("no user with these credentials"), "{body}");
        assert_eq!(rest(&channel, "GET", "/v1/services", Some(&reader), "").await, (200, "[]".to_owned()));
        let path = format!("/v1/networks/{}", manager.name);
        let (status, body) = rest(&channel, "PUT", &path, Some(&reader), "{}").await;
        assert!(status == 403 && body.contains("user rita has the role read-only; deploying needs deploy"), "{body}");
        let (status, body) = rest(&channel, "PUT", &path, Some(&writer), "{}").await;
        assert_eq!(status, 200, "{body}");
        let admin = support::connect(&addr, &cluster.admin).await.unwrap();
        let (status, body) = rest(&admin, "GET", "/v1/users", None, "").await;
        assert!(status == 200 && body.contains("\"rita\"") && !body.contains("sha256"), "{body}");
    }
    assert_eq!(cluster.networks().await, 3);
}

#[tokio::test]
async fn what_rest_does_not_take_is_refused_in_its_own_words() {
    let cluster = Cluster::found().await;
    let channel = cluster.connect(&cluster.admin).await.unwrap();
    let large = format!(r#"{{"data": "{}"}}"#, "A".repeat(2 << 20));
    let cases = [
        (
            "GET",
            "/v1/services?servic=web",
            "",
            422,
            "the query does not fit: servic: unknown field `servic`, expected `service` or `stack`",
        ),
        ("PUT", "/v1/services/web?version=new", "{}", 422, "the query does not fit: version: invalid digit found in string"),
        ("GET", "/v1/services/%ff", "", 422, "the path has no name: Invalid URL: Invalid UTF-8 in `name`"),
        ("PUT", "/v1/services/web", "{", 422, "the body does not fit: EOF while parsing an object at line 1 column 1"),
        ("PUT", "/v1/secrets/s", &large, 413, "the body has more than the limit of 2097152 bytes"),
        ("POST", "/v1/services/web", "", 405, "this path does not take POST"),
        ("GET", "/v2/services", "", 404, "there is no such path"),
        ("GET", "/v1/watch?from=99999", "", 422, "revision 99999 is not there yet"),
    ];
    for (method, path, body, status, message) in cases {
        let (told, answer) = rest(&channel, method, path, None, body).await;
        let error = serde_json::from_str::<serde_json::Value>(&answer).expect(&answer)["error"].clone();
        assert_eq!(told, status, "{method} {path}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{method} {path}: {error}");
        assert!(path != "/v1/watch?from=99999" || error["field"] == "from", "{error}");
    }
}
