//! What a write's answer is worth.

use std::collections::BTreeSet;

use rcluster_api::wire::v1;

use crate::support::Cluster;

#[tokio::test]
async fn no_two_contents_have_one_version() {
    let cluster = Cluster::found().await;
    let control = cluster.control(&cluster.admin).await.unwrap();
    let write = |number: u8| {
        let mut control = control.clone();
        let data = v1::DataSpec {
            kind: v1::DataKind::Config.into(),
            name: "c".to_owned(),
            payload: Some(v1::Payload { bytes: vec![number] }),
            ..v1::DataSpec::default()
        };
        let specs = vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }];
        // All at once: the managers commit together what is there.
        tokio::spawn(async move { control.apply(v1::ApplyRequest { specs }).await.unwrap().into_inner().applied[0].version })
    };
    let writes: Vec<_> = (0..64).map(write).collect();
    let mut versions = BTreeSet::new();
    for write in writes {
        let version = write.await.unwrap();
        assert!(versions.insert(version), "two contents have version {version}");
    }
}
