//! The nft table: [`ruleset`] says what it holds, [`encode`] turns that into messages made by [`wire`], [`table`]
//! brings it into the kernel. [`admission`] is about the tables of others. [`set`] names the maps,
//! [`pick`] says what Services need, [`pick_encode`] says it to the kernel, [`clients`] looks after affinity. [`policy`] is tables of their own.

pub(crate) mod admission;
mod apart;
pub(crate) mod clients;
pub(crate) mod encode;
pub(crate) mod pick;
mod pick_encode;
pub(crate) mod policy;
pub(crate) mod ruleset;
pub(crate) mod set;
pub(crate) mod table;
pub(crate) mod wire;
