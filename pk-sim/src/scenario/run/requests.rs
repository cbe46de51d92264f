//! Requests of a run, and their results.

use std::time::Duration;

use pk_proto::{
    FindEnd, FindNodeOptions, FindOutcome, FindStepEnd, Instant, NodeId, Reply, Request, RequestId,
    RequestOptions,
};

use super::records::{Open, Path, PathStep};
use super::state::Runner;
use crate::host::id::HostId;
use crate::scenario::spec::Pairs;
use crate::world::Completed;

impl Runner<'_> {
    fn began(&mut self, host: HostId, request: RequestId, open: Open) {
        let life = self.cluster.host(host).life;
        self.requests.open.insert((host, life, request), open);
    }

    /// Lets a node join through seeds.
    pub(super) fn begin_join(&mut self, host: HostId, seeds: &[HostId]) {
        match self.cluster.begin_join(host, seeds) {
            Ok(request) => {
                let begun = self.cluster.now();
                self.began(host, request, Open::Join { begun });
            }
            Err(_) => self.requests.join_failures += 1,
        }
    }

    /// Starts a search between two nodes at random.
    pub(super) fn search(&mut self, pairs: Pairs) {
        let joined: Vec<HostId> = self.joined.iter().copied().collect();
        let half = |side: bool| -> Vec<HostId> {
            let of = |host: &&HostId| self.halves.get(*host) == Some(&side);
            joined.iter().filter(of).copied().collect()
        };
        let halves = (pairs == Pairs::Across).then(|| (half(false), half(true)));
        let die = &mut self.search_die;
        let (from, to) = match pairs {
            Pairs::Any => (Self::any_of(die, &joined), Self::any_of(die, &joined)),
            Pairs::Across => {
                let (left, right) = halves.unwrap_or_default();
                let (from, to) = if die.below(2) == 0 { (left, right) } else { (right, left) };
                (Self::any_of(die, &from), Self::any_of(die, &to))
            }
            Pairs::Dead => (Self::any_of(die, &joined), Self::any_of(die, &self.gone)),
        };
        let (Some(from), Some(mut to)) = (from, to) else { return };
        if from == to {
            let place = joined.binary_search(&to).unwrap_or(0);
            to = joined[(place + 1) % joined.len()];
        }
        if self.quiet || from == to {
            return;
        }
        let target = self.cluster.id_of_host(to);
        let begun = self.cluster.now();
        self.requests.first_search.get_or_insert(begun);
        let connected =
            self.cluster.node(from).connections().iter().any(|info| info.node == target);
        let find = FindNodeOptions::default();
        if let Ok(request) = self.cluster.try_request(from, Request::FindNode { target, find }) {
            self.began(from, request, Open::Search { target: to, pairs, connected, begun });
        }
    }

    /// Lets a node read the chain of a peer that forges claims, if there is one.
    fn read_forged(&mut self, host: HostId) {
        let forgers: Vec<_> = (0..self.cluster.len())
            .filter(|host| self.cluster.host(*host).is_alive() && self.cluster.misbehaves(*host))
            .collect();
        if let [target] = self.choose(forgers, 1)[..] {
            let request = Request::RequestChainData {
                target: self.cluster.id_of_host(target),
                since: None,
                limit: None,
                options: RequestOptions::default(),
            };
            if let Ok(id) = self.cluster.try_request(host, request) {
                self.began(host, id, Open::Forged);
            }
        }
    }

    /// Lets a node claim another one.
    pub(super) fn claim(&mut self) {
        let joined: Vec<HostId> = self.joined.iter().copied().collect();
        let chosen = self.choose(joined, 2);
        let [from, to] = chosen[..] else { return };
        let target = self.cluster.id_of_host(to);
        let request = Request::ClaimNode { target, options: RequestOptions::default() };
        let begun = self.cluster.now();
        if let Ok(id) = self.cluster.try_request(from, request) {
            self.began(from, id, Open::Claim { target: to, begun });
        }
        self.read_forged(from);
    }

    /// Handles the requests that have ended.
    pub(super) fn collect(&mut self) {
        for completed in self.cluster.take_completed() {
            let key = (completed.host, completed.life, completed.request);
            if let Some(open) = self.requests.open.remove(&key) {
                self.ended(&open, &completed);
            }
        }
    }

    fn ended(&mut self, open: &Open, completed: &Completed) {
        let at_s = completed.at.as_micros() as f64 / 1e6;
        let took = |begun: Instant| completed.at.since(begun).as_secs_f64() * 1000.0;
        match *open {
            Open::Join { begun } => match &completed.result {
                Ok(_) => {
                    self.requests.joins.push((at_s, took(begun)));
                    self.joined.insert(completed.host);
                }
                Err(_) => self.requests.join_failures += 1,
            },
            Open::Search { target, pairs, connected, begun } => {
                if pairs != Pairs::Dead && !self.ran_throughout(target, begun) {
                    return;
                }
                self.requests.last_search = Some(completed.at);
                self.search_ended((pairs, connected), (at_s, took(begun)), &completed.result);
            }
            Open::Claim { target, begun } => {
                if !self.ran_throughout(target, begun) {
                    return;
                }
                self.requests.claims += 1;
                let committed = matches!(completed.result, Ok(Reply::ClaimNode(_)));
                self.requests.claims_committed += u64::from(committed);
                if committed {
                    self.read_chain(completed.host, target);
                }
            }
            Open::Forged => {
                self.requests.forged_read += 1;
                let accepted = matches!(&completed.result, Ok(Reply::RequestChainData(data)) if data.verified > 0);
                self.requests.forged_accepted += u64::from(accepted);
            }
            Open::Chain { target, begun } => {
                if !self.ran_throughout(target, begun) {
                    return;
                }
                self.requests.chains += 1;
                let whole = matches!(&completed.result, Ok(Reply::RequestChainData(data)) if data.fault.is_none() && data.verified > 0);
                self.requests.chains_verified += u64::from(whole);
            }
        }
    }

    fn search_ended(
        &mut self,
        (pairs, connected): (Pairs, bool),
        (at_s, took_ms): (f64, f64),
        result: &Result<Reply, pk_proto::Failure>,
    ) {
        let requests = &mut self.requests;
        requests.ended += 1;
        let outcome = match result {
            Ok(Reply::FindNode(outcome)) => Some(outcome),
            _ => None,
        };
        let found = outcome.is_some_and(|outcome| outcome.ended == FindEnd::Connected);
        requests.found += u64::from(found);
        if pairs == Pairs::Across {
            requests.across += 1;
            requests.across_found += u64::from(found);
        }
        if !connected {
            requests.searches.push((at_s, took_ms));
        }
        if let Some(outcome) = outcome {
            requests.attempts += u64::from(outcome.stats.attempts);
            requests.calls += u64::from(outcome.stats.calls);
            let longest = requests.path.as_ref().map_or(0, |path| path.steps.len());
            if found && outcome.trace.len() > longest && outcome.trace.len() <= 60 {
                requests.path = Some(path(outcome));
            }
        }
    }

    fn read_chain(&mut self, host: HostId, target: HostId) {
        if !self.running.contains(&host) {
            return;
        }
        let request = Request::RequestChainData {
            target: self.cluster.id_of_host(target),
            since: None,
            limit: None,
            options: RequestOptions::default(),
        };
        let begun = self.cluster.now();
        if let Ok(id) = self.cluster.try_request(host, request) {
            self.began(host, id, Open::Chain { target, begun });
        }
    }

    /// Whether a node has run since a time, reachable for the whole time.
    fn ran_throughout(&self, host: HostId, begun: Instant) -> bool {
        self.running.contains(&host) && self.since.get(&host).is_none_or(|since| *since <= begun)
    }
}

fn path(outcome: &FindOutcome) -> Path {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let target = outcome.trace.iter().find(|step| step.end == FindStepEnd::Target);
    let target: Option<NodeId> = target.map(|step| step.node);
    let depth = |node: &NodeId| {
        let bucket = target.and_then(|target| target.bucket_index(node));
        bucket.map_or(256, |bucket| 255 - u32::from(bucket.0))
    };
    let steps = outcome.trace.iter().map(|step| PathStep {
        from: step
            .reported_by
            .and_then(|by| outcome.trace.iter().position(|other| other.node == by)),
        depth: depth(&step.node),
        begun_ms: ms(step.begun),
        took_ms: ms(step.took),
        end: match step.end {
            FindStepEnd::Target => "target",
            FindStepEnd::Answered { .. } => "answered",
            FindStepEnd::NoAnswer => "silent",
            FindStepEnd::Unreachable(_) => "unreachable",
            FindStepEnd::Pending => "pending",
        },
    });
    Path { took_ms: ms(outcome.stats.elapsed), steps: steps.collect() }
}
