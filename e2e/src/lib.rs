//! `berth-e2e`: Berth from outside. Tests of the whole binary, and the benchmarks, stand on this harness.
//!
//! # The tour
//!
//! A [`machine::Machine`] is a computer of its own as far as Berth can tell: new network, mount and PID namespaces, with a
//! link `up0` to a second network namespace, the *outside*. When the test ends, however it ends, the machine's PID 1 goes
//! and the kernel kills all that ran on it.
//!
//! A [`node::Node`] is a `berth agent` on such a machine, with folders, a cgroup parent and a manifest folder of its own,
//! and an image `demo` made of busybox. A test writes manifests ([`node::Node::apply`]), waits for what must come true
//! ([`node::Node::wait`], driven by the API's watch and bounded by a deadline), looks at the machine (processes, logs, cgroups, the
//! nft table) and ends with [`node::Node::finish`], or just returns: then every pod is removed and [`leftovers`] looks
//! whether anything of them remained. A test whose node leaves something behind fails.
//!
//! [`pods`] reads Pod objects as a test asks about them, [`http`] is a client of a unix socket in a hundred lines (a test of
//! the `kube` client by the `kube` client would prove little), [`registry`] runs Debian's docker-registry on the machine's loopback, [`poll`]
//! is the only place that waits by looking again, for what has no event. A [`bundle::Bundle`] is given to `berth-oci`, or to
//! another OCI runtime, by hand.
//!
//! # What it needs
//!
//! Root, and the packages that `make install-deps-test` installs. Nothing is skipped where something is missing: the test
//! fails and says what. `BERTH_BIN` names the binary; without it the harness builds the debug one. `BERTH_TEST_DIR` is where
//! the nodes' folders are made (default `/var/tmp`; overlay's upper folders must not lie on an overlay).
//!
//! ```no_run
//! use std::time::Duration;
//! use berth_e2e::node::Node;
//! use berth_e2e::pods::PodExt;
//!
//! # fn main() -> anyhow::Result<()> {
//! let node = Node::start()?;
//! node.apply("hello.yaml", &berth_e2e::manifest::pod("hello", "exec sleep 1000000"))?;
//! node.wait("hello runs", Duration::from_secs(10), |pods| pods.get("hello").is_some_and(|p| p.is_running()))?;
//! node.finish()
//! # }
//! ```

pub mod bundle;
pub mod http;
pub mod leftovers;
pub mod machine;
pub mod manifest;
pub mod node;
pub mod pid1;
pub mod pods;
pub mod poll;
pub mod registry;
pub mod tools;
