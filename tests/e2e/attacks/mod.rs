//! Attacks on the redirect and on the processes behind it, by callers without privileges.

mod containers;
mod marks;
mod offers;
mod ports;
mod tunnels;
