//! Who calls, and whether they may.

use http::Method;
use http::request::Parts;

use super::ApiError;

/// Members may do everything, as in Kubernetes.
pub const ADMINS: &str = "system:masters";

/// Who a connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Root on this machine: nobody else can open the socket.
    Owner,
    /// Whoever has the key of a certificate that the node's authority has signed.
    User {
        /// The certificate's common name.
        name: String,
        /// Its organizations.
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
            Caller::Owner => vec![ADMINS.to_owned(), "system:authenticated".to_owned()],
            Caller::User { groups, .. } => {
                groups.iter().cloned().chain(["system:authenticated".to_owned()]).collect()
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

    /// Lets the caller do something, or says why not.
    ///
    /// # Errors
    /// 401 without a certificate, 403 with one of another group.
    pub fn may(&self, method: &Method, path: &str) -> Result<(), ApiError> {
        let harmless = matches!(path, "/healthz" | "/livez" | "/readyz" | "/version");
        if self.is_admin() || (harmless && method == Method::GET) {
            return Ok(());
        }
        match self {
            Caller::Anonymous => Err(ApiError::new(401, "Unauthorized", "Unauthorized")),
            // What everybody may ask who is known: who they are and what they may do.
            _ if method == Method::POST && ASKING.contains(&path) => Ok(()),
            _ => {
                let verb = method.as_str().to_lowercase();
                let name = self.name();
                let why = format!(
                    "forbidden: User {name:?} cannot {verb} path {path:?}: this node is for members of the group {ADMINS}"
                );
                Err(ApiError::new(403, "Forbidden", why))
            }
        }
    }
}

/// Paths of the questions that a caller may ask about itself.
pub const ASKING: [&str; 3] = [
    "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn code(caller: &Caller, method: &Method, path: &str) -> u16 {
        caller.may(method, path).map_or_else(|error| error.code, |()| 200)
    }

    #[test]
    fn only_admins_pass_but_everybody_may_ask_for_health() {
        let user = |group: &str| Caller::User { name: "jane".into(), groups: vec![group.into()] };
        let pods = "/api/v1/pods";
        assert_eq!(code(&Caller::Owner, &Method::DELETE, pods), 200);
        assert_eq!(code(&user(ADMINS), &Method::DELETE, pods), 200);
        assert_eq!(code(&user("system:masters2"), &Method::GET, pods), 403);
        assert_eq!(code(&Caller::Anonymous, &Method::GET, pods), 401);
        assert_eq!(code(&Caller::Anonymous, &Method::GET, "/healthz"), 200);
        assert_eq!(code(&Caller::Anonymous, &Method::POST, "/healthz"), 401);
        assert_eq!(code(&user("x"), &Method::POST, ASKING[0]), 200);
        assert_eq!(code(&Caller::Anonymous, &Method::POST, ASKING[0]), 401);
        assert_eq!(code(&user("x"), &Method::GET, "/api/v1/pods/../../healthz"), 403);
    }
}
