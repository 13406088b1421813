//! The nft table: [`ruleset`] says what it holds, [`encode`] turns that into messages made by [`wire`], [`table`]
//! brings it into the kernel.
//!
//! An `accept` here does not save a packet from a `drop` in another table: every base chain of a hook has its say.
//! Where another firewall drops forwarded packets, it must be told about the bridge; [`table::Table::dropping_chains`]
//! finds such chains so that a person can be told.

pub(crate) mod encode;
pub(crate) mod ruleset;
pub(crate) mod table;
pub(crate) mod wire;
