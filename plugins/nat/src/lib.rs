//! `nat://`: the Internet.
