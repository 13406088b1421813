//! `berth-reconciler`: what should run, what does run, and the next steps from one to the other.
//!
//! The tour: [`manifest`] turns YAML into checked [`pod::Pod`]s or into errors with file, line and field; [`folder`]
//! watches manifest folders; [`planner`] is the pure function from (desired, observed, now) to actions; [`status`]
//! computes the Pod status the way a kubelet does; [`worker`] runs one task per pod, which observes, plans and
//! acts through the [`node::Node`] trait; [`admission`] says whether the node takes a pod of a cluster; [`claims`] chooses volumes for claims; [`services`] finds the pods behind Services; [`network`] reads what a pod asks of its network; [`selinux`] says which labels a pod gets; [`storage`] judges what a pod takes of the disk; [`env`] and [`resources`] hold the formulas for environment variables, quality of service
//! and cgroup values. Nothing here does a system call or knows how a container is made.

pub mod admission;
pub mod backoff;
pub mod claims;
pub mod env;
pub mod envfile;
pub mod eviction;
pub mod folder;
pub mod manifest;
pub mod memory_qos;
pub mod network;
pub mod node;
pub mod planner;
pub mod pod;
pub mod quantity;
pub mod resources;
pub mod selinux;
pub mod services;
pub mod shutdown;
pub mod status;
pub mod storage;
pub mod worker;
