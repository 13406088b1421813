//! Who calls.

use http::request::Parts;

use crate::hub::node_user;

/// Members may do everything, as in Kubernetes.
pub const ADMINS: &str = "system:masters";

/// Everybody whose name is known is a member.
const AUTHENTICATED: &str = "system:authenticated";

/// Who a connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Root on this machine: nobody else can open the socket.
    Owner,
    /// Whoever has the key of a certificate that the node's authority has signed, or a token.
    User {
        /// The certificate's common name, or the token's user.
        name: String,
        /// Its organizations, or the token's groups.
        groups: Vec<String>,
    },
    /// Somebody without a certificate.
    Anonymous,
}

impl Caller {
    /// Who sent a request. One whose connection says nothing is nobody's.
    pub fn of(parts: &Parts) -> Caller {
        parts.extensions.get::<Caller>().cloned().unwrap_or(Caller::Anonymous)
    }

    /// The caller's name, as reviews and certificate requests have it.
    pub fn name(&self) -> &str {
        match self {
            Caller::Owner => "root",
            Caller::User { name, .. } => name,
            Caller::Anonymous => "system:anonymous",
        }
    }

    /// The caller's groups.
    pub fn groups(&self) -> Vec<String> {
        match self {
            Caller::Owner => vec![ADMINS.to_owned(), AUTHENTICATED.to_owned()],
            Caller::User { groups, .. } => {
                // Whoever was asked about a token may have said it already.
                let others = groups.iter().filter(|group| *group != AUTHENTICATED).cloned();
                others.chain([AUTHENTICATED.to_owned()]).collect()
            }
            Caller::Anonymous => vec!["system:unauthenticated".to_owned()],
        }
    }

    /// Whether the caller may do everything.
    pub fn is_admin(&self) -> bool {
        match self {
            Caller::Owner => true,
            Caller::User { groups, .. } => groups.iter().any(|group| group == ADMINS),
            Caller::Anonymous => false,
        }
    }

    /// The node that the caller is, if it is one.
    pub fn node(&self) -> Option<&str> {
        match self {
            Caller::User { name, groups } => node_user(name, groups),
            _ => None,
        }
    }
}
