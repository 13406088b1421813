//! Where the last N lines of a log begin.
