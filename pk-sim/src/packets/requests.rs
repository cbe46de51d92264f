//! Requests to nodes, and application streams.

use std::time::Duration;

use pk_proto::{
    ClosestNodesQuery, Event, Failure, FindNodeOptions, NodeAddress, Reply, Request, RequestId,
    RequestOptions, SeedNode, StreamId,
};

use super::PacketWorld;
use super::host::PROTOCOL;
use crate::host::id::HostId;

/// Deadline of the requests of a world.
const DEADLINE: Duration = Duration::from_secs(30);

fn options() -> RequestOptions {
    RequestOptions { deadline: Some(DEADLINE), ..RequestOptions::default() }
}

impl PacketWorld {
    /// Returns the address at which others reach a host: that of its socket. Behind a NAT, it
    /// depends on the mapping.
    pub fn address(&self, id: HostId) -> NodeAddress {
        self.hosts[id].addr.into()
    }

    /// Starts a request. Fails if the node refuses it.
    pub fn request(&mut self, id: HostId, request: Request) -> RequestId {
        let now = self.now;
        self.checkers.called(id, now);
        let begun = self.hosts[id].call(|node| node.request(now, request));
        let begun = match begun {
            Some(Ok(begun)) => begun,
            other => self.fail(&format!("host {id} refused a request: {other:?}")),
        };
        let checked = self.checkers.begun(id, begun);
        self.check(id, checked);
        self.flush(id);
        begun
    }

    /// Returns the result of a request of the present process, once it has ended.
    pub fn result(&self, id: HostId, request: RequestId) -> Option<&Result<Reply, Failure>> {
        // The newest first: worlds ask often.
        self.hosts[id].events().iter().rev().find_map(|(_, event)| match event {
            Event::Done { id, result } if *id == request => Some(result),
            _ => None,
        })
    }

    /// Executes a request. Returns its duration and its result.
    pub fn perform(&mut self, id: HostId, request: Request) -> (Duration, Result<Reply, Failure>) {
        let begun = self.now;
        let request = self.request(id, request);
        self.until(2 * DEADLINE, |world| world.result(id, request).is_some());
        match self.result(id, request).cloned() {
            Some(result) => (self.now.since(begun), result),
            None => self.fail(&format!("request {request} of host {id} has not ended")),
        }
    }

    /// Connects a host to another one at its address. Returns the duration. Fails if it cannot.
    pub fn connect(&mut self, id: HostId, to: HostId) -> Duration {
        let address = self.address(to);
        self.connect_at(id, to, address)
    }

    /// Connects a host to another one at an address. Returns the duration. Fails if it cannot.
    pub fn connect_at(&mut self, id: HostId, to: HostId, address: NodeAddress) -> Duration {
        let target = self.id(to);
        let (took, result) =
            self.perform(id, Request::Connect { target, address, options: options() });
        match result {
            Ok(_) => took,
            Err(failure) => self.fail(&format!("host {id} cannot connect to {to}: {failure}")),
        }
    }

    /// Lets a host join the network through another one. Returns the duration. Fails if it cannot.
    pub fn join(&mut self, id: HostId, seed: HostId) -> Duration {
        let seeds = vec![SeedNode { node: self.id(seed), address: self.address(seed) }];
        let request = Request::SyncNodeGraph { seeds, blocking: true, options: options() };
        match self.perform(id, request) {
            (took, Ok(_)) => took,
            (_, Err(failure)) => self.fail(&format!("host {id} cannot join: {failure}")),
        }
    }

    /// Returns the request for the nodes next to a connected host, of that host.
    pub fn question(&self, via: HostId) -> Request {
        Request::QueryClosestNodes {
            via: self.id(via),
            target: self.id(via),
            query: ClosestNodesQuery { known: true, connected: true },
            options: options(),
        }
    }

    /// One question to a connected host. Returns the duration if it was answered.
    pub fn ask(&mut self, id: HostId, via: HostId) -> Result<Duration, Failure> {
        let request = self.question(via);
        let (took, result) = self.perform(id, request);
        result.map(|_| took)
    }

    /// Searches for a host. Returns the duration if it was found.
    pub fn find(&mut self, id: HostId, target: HostId) -> Option<Duration> {
        let find = FindNodeOptions { options: options(), ..FindNodeOptions::default() };
        let target = self.id(target);
        match self.perform(id, Request::FindNode { target, find }) {
            (took, Ok(Reply::FindNode(outcome))) => outcome.found.map(|_| took),
            _ => None,
        }
    }

    // -- application streams

    /// Opens an application stream to a host. Fails if it cannot.
    pub fn open(&mut self, id: HostId, to: HostId) -> StreamId {
        let (target, protocol) = (self.id(to), PROTOCOL.into());
        let request = Request::OpenStream { target, protocol, options: options() };
        let request = self.request(id, request);
        self.until(DEADLINE, |world| world.result(id, request).is_some());
        let stream = self.hosts[id].stream_of(request);
        stream.unwrap_or_else(|| {
            self.fail(&format!("host {id} opens no stream: {:?}", self.result(id, request)))
        })
    }

    /// Sends this many bytes on an application stream, as it accepts them.
    pub fn write(&mut self, id: HostId, stream: StreamId, bytes: u64) {
        let now = self.now;
        self.hosts[id].add_write(now, stream, bytes);
        self.flush(id);
    }

    /// Reads everything that the application streams of a host have.
    pub fn read_all(&mut self, id: HostId) {
        let streams: Vec<_> = self.hosts[id].opened().iter().map(|opened| opened.stream).collect();
        for stream in streams {
            let now = self.now;
            self.hosts[id].read(now, stream);
            self.flush(id);
        }
    }
}
