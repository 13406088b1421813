//! CRI logs.
