//! The nft table: [`ruleset`] says what it holds, [`encode`] turns that into messages made by [`wire`], [`table`]
//! brings it into the kernel. [`admission`] is about the tables of others.

pub(crate) mod admission;
pub(crate) mod encode;
pub(crate) mod ruleset;
pub(crate) mod table;
pub(crate) mod wire;
