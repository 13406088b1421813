//! The system calls of this crate: network namespaces and netlink sockets. `nix` and `netlink-sys` wrap nearly all of
//! them; what is unsafe in this crate is here.

#![allow(unsafe_code)]

pub(crate) mod netlink;
pub(crate) mod netns;
