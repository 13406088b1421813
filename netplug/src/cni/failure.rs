//! Errors as the specification has them.

use std::fmt::{self, Display};

use serde_json::{Value, json};

use crate::error::Error;

// "Well-known error codes" of the specification.
pub(super) const VERSION: u32 = 1;
pub(super) const UNSUPPORTED: u32 = 2;
pub(super) const NO_CONTAINER: u32 = 3;
pub(super) const ENVIRONMENT: u32 = 4;
pub(super) const IO: u32 = 5;
pub(super) const DECODE: u32 = 6;
pub(super) const CONFIG: u32 = 7;
pub(super) const OWN_NETNS: u32 = 8;
pub(super) const TRY_AGAIN: u32 = 11;
pub(super) const UNAVAILABLE: u32 = 50;
pub(super) const LIMITED: u32 = 51;
// Our own, from 100 on.
pub(super) const KERNEL: u32 = 100;
pub(super) const NO_ADDRESS: u32 = 101;
pub(super) const PORT_TAKEN: u32 = 102;
pub(super) const ADDRESS_REFUSED: u32 = 103;
pub(super) const INTERFACE_TAKEN: u32 = 104;
pub(super) const CHECK_FAILED: u32 = 105;

/// What is printed when a request fails.
#[derive(Debug)]
pub(super) struct Failure {
    pub code: u32,
    message: String,
    details: String,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl Failure {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// Adds why.
    pub(super) fn because(self, why: impl Display) -> Self {
        Self { details: why.to_string(), ..self }
    }

    pub(super) fn render(&self, version: &str) -> Value {
        let mut answer = json!({"cniVersion": version, "code": self.code, "msg": self.message});
        if !self.details.is_empty() {
            answer["details"] = self.details.clone().into();
        }
        answer
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::InvalidConfig(_) | Error::NotABridge(_) => CONFIG,
            Error::InvalidId(_) => ENVIRONMENT,
            // Those in quarantine come back by themselves.
            Error::AddressesExhausted { quarantined: 1.., .. } => TRY_AGAIN,
            Error::AddressesExhausted { .. } => NO_ADDRESS,
            Error::AddressRefused { .. } => ADDRESS_REFUSED,
            Error::HostPortConflict { .. } => PORT_TAKEN,
            Error::InterfaceTaken { .. } => INTERFACE_TAKEN,
            Error::Namespace { .. } => NO_CONTAINER,
            Error::File { .. } | Error::Sysctl { .. } => IO,
            _ => KERNEL,
        };
        let failure = Self::new(code, error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => failure.because(source),
            None => failure,
        }
    }
}
