//! `logs`: what containers have written, line by line, with who wrote it.

use rcluster_api::error::ApiError;
use rcluster_api::object::{Kind, Object};
use rcluster_api::wire::v1;
use rcluster_base::clock::unix_ms;
use serde::Serialize;

use crate::args::Logs;
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;
use crate::views;

/// One line as `-o json` prints it.
#[derive(Debug, Serialize)]
struct LineJson<'a> {
    task: &'a str,
    node: &'a str,
    container: &'a str,
    stream: &'a str,
    time: String,
    text: &'a str,
}

/// `logs SERVICE|TASK`.
pub async fn logs(mut session: Session, out: Out, args: Logs) -> Result<(), CliError> {
    let now_ms = unix_ms();
    let since_ms = match (args.since.as_deref(), args.tail) {
        // None of the lines that are there: what comes from now on.
        (_, Some(0)) => now_ms,
        (Some(since), _) => views::since(since, now_ms)?,
        (None, _) => 0,
    };
    // All of them: a name that is a task's is no error here.
    let services = session.list(Kind::Service, "", "").await?;
    let of_service = services.iter().any(|object| match object {
        Object::Service(service) => service.spec.name == args.target || service.id.as_str() == args.target,
        _ => false,
    });
    let request = v1::LogsRequest { target: args.target.clone(), follow: args.follow, tail: args.tail.unwrap_or(0), since_ms };
    let mut stream = session
        .call(|mut client| {
            let request = request.clone();
            async move { client.logs(request).await }
        })
        .await?;
    let (mut lines, mut problems) = (0_u64, 0_u64);
    while let Some(line) = stream.message().await.map_err(|status| CliError::from(ApiError::from(status)))? {
        if line.problem.is_empty() {
            lines += 1;
            print(out, &line, of_service, args.timestamps)?;
        } else {
            problems += 1;
            output::talk(&format!("{}: {}", if line.task.is_empty() { &args.target } else { &line.task }, line.problem))?;
        }
    }
    if lines == 0 && problems > 0 {
        return Err(CliError::refused(format!("no log of {} can be had", args.target), "see rclusterctl ps -a"));
    }
    Ok(())
}

fn print(out: Out, line: &v1::LogLine, of_service: bool, timestamps: bool) -> Result<(), CliError> {
    let v1::LogLine { task, node, container, stream, at_ns, text, problem: _ } = line;
    let time = timestamp(*at_ns);
    if !out.is_table() {
        return out.streamed(&LineJson { task, node, container, stream, time, text });
    }
    output::data(&plain(line, of_service, timestamps))
}

/// `web.1@n1 | text`; the container too where it is not the only one by its name.
fn plain(line: &v1::LogLine, of_service: bool, timestamps: bool) -> String {
    let mut text = String::new();
    if timestamps {
        text.push_str(&timestamp(line.at_ns));
        text.push(' ');
    }
    let service = line.task.rsplit_once('.').map_or(line.task.as_str(), |(service, _)| service);
    let of_pod = line.container != service && !line.container.is_empty();
    match (of_service, of_pod) {
        (true, true) => text.push_str(&format!("{}/{}@{} | ", line.task, line.container, line.node)),
        (true, false) => text.push_str(&format!("{}@{} | ", line.task, line.node)),
        (false, true) => text.push_str(&format!("{} | ", line.container)),
        (false, false) => {}
    }
    text + &line.text + "\n"
}

/// RFC 3339 in UTC with nanoseconds, as in the log files.
fn timestamp(at_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at_ns)).map_or_else(|_| String::new(), |time| format!("{time:.9}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_who_wrote_them() {
        let line = |container: &str| v1::LogLine {
            task: "web.1".to_owned(),
            node: "n1".to_owned(),
            container: container.to_owned(),
            stream: "stdout".to_owned(),
            at_ns: 1_795_255_200_000_000_001,
            text: "hello".to_owned(),
            problem: String::new(),
        };
        for (container, of_service, timestamps, expected) in [
            ("web", true, false, "web.1@n1 | hello\n"),
            ("side", true, false, "web.1/side@n1 | hello\n"),
            ("side", false, false, "side | hello\n"),
            ("web", false, true, "2026-11-21T10:00:00.000000001Z hello\n"),
        ] {
            assert_eq!(plain(&line(container), of_service, timestamps), expected);
        }
    }
}
