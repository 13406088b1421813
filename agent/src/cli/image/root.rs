//! Whose images are meant: those below the state folder that was named, or that of the agent that answers.

use std::path::{Path, PathBuf};

use anyhow::bail;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Node;

use super::super::{client, failure};
use crate::facts::ROOT_ANNOTATION;

/// The state folder of an agent that was not told another one.
const DEFAULT: &str = "/var/lib/berth";

/// The state folder to work on. Who names a folder and no agent means that folder, whatever runs; who names an agent
/// means its folder.
///
/// # Errors
/// When the agent that was named has another folder than the one that was named, or does not answer and no folder was.
pub fn find(given: Option<PathBuf>, socket: &Path, named: bool) -> anyhow::Result<PathBuf> {
    let given = match given {
        Some(given) if !named => return Ok(given),
        given => given,
    };
    match (given, of_agent(socket)?) {
        (Some(given), Some(theirs)) if !same(&given, &theirs) => bail!(
            "the agent at {} has its images below {}, not below {}: leave out --root (and $BERTH_ROOT), or name another \
             agent",
            socket.display(),
            theirs.display(),
            given.display()
        ),
        (_, Some(theirs)) => Ok(theirs),
        (Some(given), None) => Ok(given),
        (None, None) if named => bail!(
            "no agent answers at {} that says where its images are: say so with --root",
            socket.display()
        ),
        (None, None) => Ok(DEFAULT.into()),
    }
}

/// What the agent says of itself; none if there is no agent, or one that does not say.
fn of_agent(socket: &Path) -> anyhow::Result<Option<PathBuf>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let nodes = runtime.block_on(async {
        client::get::<List<Node>>(&client::connect(socket), "/api/v1/nodes", "application/json").await
    });
    let nodes = match nodes {
        Ok(nodes) => nodes.items,
        Err(error) if failure::is_unreachable(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Other nodes may have joined it, which say nothing of theirs.
    let own = nodes.into_iter().find_map(|node| node.metadata.annotations?.remove(ROOT_ANNOTATION));
    Ok(own.map(PathBuf::from))
}

fn same(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
