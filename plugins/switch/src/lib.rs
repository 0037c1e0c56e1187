//! `switch://`
