//! Multicast DNS (RFC 6762) with service discovery (RFC 6763), without IO.
//!
//! [`Mdns`] advertises instances of one service and browses for others on the links that it is
//! given. The caller owns sockets and time: after each call, poll [`Mdns::poll_transmit`] and
//! [`Mdns::poll_event`] until `None`, then read [`Mdns::poll_timeout`] and call
//! [`Mdns::handle_timeout`] at that time.
//!
//! ```
//! use pk_mdns::{Event, Link, LinkId, Mdns, Settings};
//! use pk_proto::Instant;
//!
//! let now = Instant::ORIGIN;
//! let settings = Settings::new("_polykey._udp.local", 64_023, [0; 32]);
//! let mut mdns = Mdns::new(settings);
//! mdns.set_links(now, vec![Link { id: LinkId(1), addrs: vec!["192.168.0.2".parse().unwrap()] }]);
//! mdns.advertise(now, "instance", 1314);
//! let first = mdns.poll_timeout().unwrap();
//! mdns.handle_timeout(first);
//! assert!(mdns.poll_transmit().is_some(), "a probe for the name of the instance");
//! ```

mod browser;
mod link;
mod machine;
mod message;
mod responder;
mod timing;

pub use self::link::{Link, LinkId};
pub use self::machine::{Destination, Metrics, Transmit};
pub use self::machine::{Event, Mdns, Settings};
