//! PCP (RFC 6887) and NAT-PMP (RFC 6886), without IO: the messages that map a UDP port over IPv4,
//! and their repetition.
//!
//! ```
//! use std::time::Duration;
//!
//! use pk_portmap::{Exchange, PATIENT, Request, Step};
//!
//! let mut exchange = Exchange::new(Request::Address, PATIENT);
//! assert_eq!(exchange.poll(Duration::ZERO), Step::Send);
//! assert_eq!(Request::Address.encode(), [0, 0]);
//! let answer = [0, 128, 0, 0, 0, 0, 0, 42, 203, 0, 113, 7];
//! let granted = exchange.receive(&answer).unwrap().unwrap();
//! assert_eq!(granted.ip, Some("203.0.113.7".parse().unwrap()));
//! ```

mod exchange;
mod fault;
mod messages;

pub use self::exchange::{Exchange, HURRIED, PATIENT, Step};
pub use self::fault::Fault;
pub use self::messages::{Granted, NONCE, PORT, Request};
