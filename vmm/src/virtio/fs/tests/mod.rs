//! The device driven through its rings: what a guest's kernel asks for and what comes of it on the host.

mod basic;
mod caching;
mod contents;
mod guest;
mod hostile;
mod kernel;
mod lifetime;
mod ownership;
mod watches;
mod xattrs;
