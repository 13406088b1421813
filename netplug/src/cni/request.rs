//! The environment of a call: what is to be done, for whom.

use std::ffi::OsString;
use std::path::PathBuf;

use super::VERSIONS;
use super::failure::{ENVIRONMENT, Failure, VERSION};
use crate::config::link_name_ok;

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Command {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// Its name, and the first version of the specification that has it.
    fn since(self) -> (&'static str, &'static str) {
        match self {
            Self::Add => ("ADD", VERSIONS[0]),
            Self::Del => ("DEL", VERSIONS[0]),
            Self::Version => ("VERSION", VERSIONS[0]),
            Self::Check => ("CHECK", "0.4.0"),
            Self::Status => ("STATUS", "1.1.0"),
            Self::Gc => ("GC", "1.1.0"),
        }
    }

    /// Whether it is about one attachment.
    fn is_of_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// What `CNI_ARGS` may say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Args {
    pub pod: Option<String>,
    pub namespace: Option<String>,
    pub ips: Vec<String>,
    pub mac: Option<String>,
}

impl Args {
    fn parse(text: &str) -> Result<Self, Failure> {
        let fail = |what: String| Failure::new(ENVIRONMENT, format!("CNI_ARGS: {what}"));
        let (mut args, mut unknown, mut lenient) = (Self::default(), None, false);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| fail(format!("{pair:?} is not KEY=VALUE")))?;
            match key {
                "IgnoreUnknown" => {
                    lenient = ["1", "t", "true"].contains(&value.to_ascii_lowercase().as_str())
                }
                "K8S_POD_NAME" => args.pod = Some(value.into()),
                "K8S_POD_NAMESPACE" => args.namespace = Some(value.into()),
                "IP" => args.ips.extend(value.split(',').map(str::to_owned)),
                "MAC" => args.mac = Some(value.into()),
                "K8S_POD_INFRA_CONTAINER_ID" | "K8S_POD_UID" | "K8S_POD_RUNTIME" => {}
                other => unknown = Some(other.to_owned()),
            }
        }
        match unknown.filter(|_| !lenient) {
            Some(key) => Err(fail(format!("{key} is not known (IgnoreUnknown=1 would let it pass)"))),
            None => Ok(args),
        }
    }
}

/// A call.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub command: Command,
    pub container: String,
    /// None if the container has lost it, which only DEL may be told.
    pub netns: Option<PathBuf>,
    pub interface: String,
    pub args: Args,
}

impl Request {
    /// Reads and checks the variables that the command needs.
    pub(super) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let text = |name: &str| -> Result<String, Failure> {
            let value = variable(name).unwrap_or_default();
            value.into_string().map_err(|_| Failure::new(ENVIRONMENT, format!("{name} is not UTF-8")))
        };
        let command = text("CNI_COMMAND")?;
        let command = Command::parse(&command).ok_or_else(|| {
            let is = if command.is_empty() { "not set".into() } else { format!("{command:?}") };
            Failure::new(
                ENVIRONMENT,
                format!("CNI_COMMAND is {is}, not ADD, DEL, CHECK, STATUS, GC or VERSION"),
            )
        })?;
        let request = Self {
            command,
            container: text("CNI_CONTAINERID")?,
            netns: Some(text("CNI_NETNS")?).filter(|path| !path.is_empty()).map(PathBuf::from),
            interface: text("CNI_IFNAME")?,
            args: Args::default(),
        };
        if !command.is_of_attachment() {
            return Ok(request);
        }
        request.check()?;
        Ok(Self { args: Args::parse(&text("CNI_ARGS")?)?, ..request })
    }

    fn check(&self) -> Result<(), Failure> {
        let missing: Vec<&str> = [
            ("CNI_CONTAINERID", self.container.is_empty()),
            ("CNI_NETNS", self.netns.is_none() && self.command != Command::Del),
            ("CNI_IFNAME", self.interface.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            return Err(Failure::new(ENVIRONMENT, format!("not set: {}", missing.join(", "))));
        }
        if !super::is_name(&self.container) {
            let text = format!("CNI_CONTAINERID {:?} is not letters, digits, _ . -", self.container);
            return Err(Failure::new(ENVIRONMENT, text));
        }
        if !link_name_ok(&self.interface) {
            let text = format!("CNI_IFNAME {:?} is not 1 to 15 letters, digits, - _ .", self.interface);
            return Err(Failure::new(ENVIRONMENT, text));
        }
        Ok(())
    }

    /// Refuses a version that is not spoken, or that does not have the command.
    pub(super) fn check_version(&self, version: &str) -> Result<(), Failure> {
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        let Some(asked) = place(version) else {
            let text = format!("cniVersion {version:?} is not one of {}", VERSIONS.join(", "));
            return Err(Failure::new(VERSION, text));
        };
        let (name, since) = self.command.since();
        if Some(asked) < place(since) {
            let text = format!("{name} needs version {since}, the configuration is of {version}");
            return Err(Failure::new(VERSION, text));
        }
        Ok(())
    }

    /// The key of the lease: an attachment is a container and an interface in it.
    pub(super) fn id(&self) -> String {
        id(&self.container, &self.interface)
    }
}

/// The key of an attachment's lease. Neither part has a colon.
pub(super) fn id(container: &str, interface: &str) -> String {
    format!("{container}:{interface}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_kubernetes_and_of_the_conventions() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=x;FOO=1;\
                    IP=10.1.0.5,fd00::5;MAC=02:00:00:00:00:05";
        let args = Args::parse(text).unwrap();
        let expected = Args {
            pod: Some("web".into()),
            namespace: Some("shop".into()),
            ips: vec!["10.1.0.5".into(), "fd00::5".into()],
            mac: Some("02:00:00:00:00:05".into()),
        };
        assert_eq!(args, expected);
        assert_eq!(Args::parse("").unwrap(), Args::default());
        assert!(Args::parse("FOO=1").unwrap_err().to_string().contains("FOO is not known"));
        assert!(Args::parse("FOO").unwrap_err().to_string().contains("is not KEY=VALUE"));
    }
}
