//! Decides what an image's configuration says of the container it becomes (image-spec, config.md; Docker's `Healthcheck` beside it).
//!
//! In: the configuration as a document. Out: [`ImageConfig`]. Lists that are sets in the image are sorted, as their order means
//! nothing. What is not known here is left out; what is known and cannot be meant is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;
use rcluster_api::health::HealthCheck;
use rcluster_api::resource::Millis;
use serde::Deserialize;

use super::bundle::ImageConfig;

/// What the image-spec leaves to Docker.
#[derive(Debug, Default, Deserialize)]
pub struct Extension {
    #[serde(default)]
    config: Option<ExtensionConfig>,
}

#[derive(Debug, Default, Deserialize)]
struct ExtensionConfig {
    #[serde(default, rename = "Healthcheck")]
    healthcheck: Option<Check>,
}

/// moby, `api/types/container.HealthConfig`; times in nanoseconds, zero means the default.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Check {
    test: Option<Vec<String>>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    start_interval: u64,
    retries: u32,
}

/// What the configuration says; the error names the part.
pub fn config(configuration: &ImageConfiguration, extension: Extension) -> Result<ImageConfig, String> {
    let Some(config) = configuration.config() else { return Ok(ImageConfig::default()) };
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let sorted = |set: &Option<Vec<String>>| list(set).into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let volumes = sorted(config.volumes());
    if let Some(volume) = volumes.iter().find(|volume| !is_below_root(volume)) {
        return Err(format!("volume {volume:?}: an absolute path below the root, without '..'"));
    }
    let healthcheck = extension.config.and_then(|config| config.healthcheck).map(healthcheck).transpose()?.flatten();
    Ok(ImageConfig {
        entrypoint: list(config.entrypoint()),
        cmd: list(config.cmd()),
        env: list(config.env()),
        workdir: text(config.working_dir()),
        user: text(config.user()),
        stop_signal: text(config.stop_signal()),
        healthcheck,
        volumes,
        exposed_ports: sorted(config.exposed_ports()),
        labels: config.labels().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
    })
}

fn is_below_root(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    path.starts_with('/') && !path.contains('\0') && parts.clone().next().is_some() && parts.all(|part| part != "..")
}

fn healthcheck(check: Check) -> Result<Option<HealthCheck>, String> {
    let test = check.test.unwrap_or_default();
    let command = match test.split_first() {
        // Only times: they would be those of a check that the image does not have.
        None => return Ok(None),
        Some((form, [])) if form == "NONE" => return Ok(Some(HealthCheck { disable: true, ..HealthCheck::default() })),
        Some((form, [line])) if form == "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        Some((form, command @ [_, ..])) if form == "CMD" => command.to_vec(),
        Some(_) => return Err(format!("Healthcheck.Test {test:?}: NONE, CMD with a command, or CMD-SHELL with one line")),
    };
    let or = |nanoseconds: u64, default: Millis| match Duration::from_nanos(nanoseconds) {
        Duration::ZERO => default,
        time => Millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)),
    };
    let default = HealthCheck::default();
    Ok(Some(HealthCheck {
        command,
        interval: or(check.interval, default.interval),
        timeout: or(check.timeout, default.timeout),
        start_period: or(check.start_period, default.start_period),
        start_interval: or(check.start_interval, default.start_interval),
        retries: if check.retries == 0 { default.retries } else { check.retries },
        ..default
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(settings: &Value) -> Result<ImageConfig, String> {
        let document = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}, "config": settings});
        let extension = Extension::deserialize(&document).map_err(|error| error.to_string())?;
        config(&serde_json::from_value(document).expect("a configuration"), extension)
    }

    #[test]
    fn everything_an_image_says_is_taken_and_sets_are_in_order() {
        let config = read(&json!({
            "Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=b"], "WorkingDir": "/w", "User": "u:g", "StopSignal": "SIGINT",
            "Volumes": {"/b": {}, "/a": {}}, "ExposedPorts": {"80/tcp": {}, "443/tcp": {}}, "Labels": {"k": "v"}, "ArgsEscaped": true,
        }));
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let expected = ImageConfig {
            entrypoint: words(&["/e"]),
            cmd: words(&["c"]),
            env: words(&["A=b"]),
            workdir: "/w".into(),
            user: "u:g".into(),
            stop_signal: "SIGINT".into(),
            healthcheck: None,
            volumes: words(&["/a", "/b"]),
            exposed_ports: words(&["443/tcp", "80/tcp"]),
            labels: [("k".to_owned(), "v".to_owned())].into(),
        };
        assert_eq!(config, Ok(expected));
        assert_eq!(read(&Value::Null), Ok(ImageConfig::default()));
    }

    #[test]
    fn volumes_are_directories_of_the_image() {
        for volume in ["data", "/", "/./", "/a/../b", "", "//"] {
            let error = read(&json!({"Volumes": {volume: {}}})).expect_err(volume);
            assert!(error.starts_with(&format!("volume {volume:?}")), "{error}");
        }
        assert_eq!(read(&json!({"Volumes": {"/a..b/": {}}})).map(|config| config.volumes), Ok(vec!["/a..b/".to_owned()]));
    }

    #[test]
    fn an_images_check_is_understood_as_docker_does() {
        let check = |check: Value| read(&json!({"Healthcheck": check})).map(|config| config.healthcheck);
        let shell = check(json!({"Test": ["CMD-SHELL", "id || exit 1"], "Interval": 2_000_000_000_u64, "Timeout": 1, "Retries": 5}));
        let expected = HealthCheck {
            command: ["/bin/sh", "-c", "id || exit 1"].map(str::to_owned).to_vec(),
            interval: Millis(2000),
            timeout: Millis(1),
            retries: 5,
            ..HealthCheck::default()
        };
        assert_eq!(shell, Ok(Some(expected)));
        let plain = check(json!({"Test": ["CMD", "/probe", "-q"], "StartPeriod": 3_000_000, "StartInterval": 0}));
        let expected =
            HealthCheck { command: ["/probe", "-q"].map(str::to_owned).to_vec(), start_period: Millis(3), ..HealthCheck::default() };
        assert_eq!(plain, Ok(Some(expected)));
        assert_eq!(check(json!({"Test": ["NONE"]})), Ok(Some(HealthCheck { disable: true, ..HealthCheck::default() })));
        assert_eq!(check(json!({"Interval": 5})), Ok(None));
        assert_eq!(check(Value::Null), Ok(None));
        for wrong in [json!(["CMD"]), json!(["CMD-SHELL", "a", "b"]), json!(["RUN", "x"])] {
            let error = check(json!({"Test": wrong})).expect_err("refused");
            assert!(error.contains("NONE, CMD with a command"), "{error}");
        }
    }
}
