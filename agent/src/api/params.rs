//! Query parameters of a request.

use std::str::FromStr;

use axum::extract::Query;
use http::Uri;

use super::ApiError;

/// The query's names and values, in order.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Reads the query of an address.
    pub fn of(uri: &Uri) -> Result<Params, ApiError> {
        let query: Query<Vec<(String, String)>> = Query::try_from_uri(uri)
            .map_err(|e| ApiError::bad_request(format!("unable to decode the query: {e}")))?;
        Ok(Params(query.0))
    }

    /// The query with other names, for a container, if there is one.
    pub fn with(self, names: &[(&str, &str)], container: &str) -> Params {
        let renamed = |name: String| {
            names.iter().find(|(from, _)| *from == name).map_or(name, |(_, to)| (*to).to_owned())
        };
        let mut all: Vec<_> = self.0.into_iter().map(|(name, value)| (renamed(name), value)).collect();
        if !container.is_empty() {
            all.retain(|(name, _)| name != "container");
            all.push(("container".to_owned(), container.to_owned()));
        }
        Params(all)
    }

    /// The first value of a name, if it is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let first = self.0.iter().find(|(n, _)| n == name)?;
        Some(first.1.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A switch: `true`, `1` or present without value.
    pub fn flag(&self, name: &str) -> bool {
        self.all(name).next().is_some_and(|value| !matches!(value, "false" | "0"))
    }

    /// A number or anything else that is written as one word.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let parse = |value: &str| {
            value.parse().map_err(|_| {
                ApiError::bad_request(format!("invalid value {value:?} of query parameter {name}"))
            })
        };
        self.get(name).map(parse).transpose()
    }

    /// Whether the request is only tried (`dryRun=All`).
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!(
                "invalid value {other:?} of query parameter dryRun, want All"
            ))),
        }
    }
}
