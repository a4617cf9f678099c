//! Decides what an image's configuration says of the container it becomes (image-spec, config.md; Docker's `Healthcheck` beside it).
//!
//! In: the configuration as a document. Out: [`ImageConfig`]. Lists that are sets in the image are sorted, as their order means
//! nothing. What is not known here is left out; what is known and cannot be meant is refused.

use std::collections::BTreeSet;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::bundle::ImageConfig;
use super::health::ImageHealthcheck;

/// What the image-spec leaves to Docker.
#[derive(Debug, Default, Deserialize)]
pub struct Extension {
    #[serde(default)]
    config: Option<ExtensionConfig>,
}

#[derive(Debug, Default, Deserialize)]
struct ExtensionConfig {
    #[serde(default, rename = "Healthcheck")]
    healthcheck: Option<ImageHealthcheck>,
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
    let healthcheck = extension.config.and_then(|config| config.healthcheck).and_then(ImageHealthcheck::check);
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

#[cfg(test)]
mod tests {
    use rcluster_api::health::HealthCheck;
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
            "Healthcheck": {"Test": ["CMD", "/ok"]}, "Volumes": {"/b": {}, "/a": {}}, "ExposedPorts": {"80/tcp": {}, "443/tcp": {}}, "Labels": {"k": "v"}, "ArgsEscaped": true,
        }));
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let expected = ImageConfig {
            entrypoint: words(&["/e"]),
            cmd: words(&["c"]),
            env: words(&["A=b"]),
            workdir: "/w".into(),
            user: "u:g".into(),
            stop_signal: "SIGINT".into(),
            healthcheck: Some(HealthCheck { command: words(&["/ok"]), ..HealthCheck::default() }),
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
}
