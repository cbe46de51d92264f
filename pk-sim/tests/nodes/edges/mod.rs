//! Edge cases: times, counts, addresses, generations of keys, and the results of requests at a
//! limit.

mod addresses;
mod configs;
mod counts;
mod renewals;
mod reports;
mod times;
