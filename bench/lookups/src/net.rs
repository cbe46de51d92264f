//! A network of many nodes that answer from their tables: ids, tables, answers, round trips. All of
//! it follows from one seed.
//!
//! The table of a node has up to 20 random members of each sibling subtree. Dead nodes are in the
//! tables of others and never answer. Liars know all other liars, and name no other node.

/// An id as four big-endian words.
pub type Words = [u64; 4];

/// Number of contacts in a bucket and in an answer.
pub const K: usize = 20;

/// A permutation of 64 bits that looks random.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

pub fn words(id: &[u8; 32]) -> Words {
    let (chunks, _) = id.as_chunks::<8>();
    std::array::from_fn(|at| u64::from_be_bytes(chunks[at]))
}

pub fn bytes(words: &Words) -> [u8; 32] {
    let mut id = [0; 32];
    for (chunk, word) in id.chunks_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_be_bytes());
    }
    id
}

/// A random id.
pub fn random_id(seed: u64) -> Words {
    std::array::from_fn(|at| mix(mix(seed) ^ mix(at as u64)))
}

pub fn xor(a: &Words, b: &Words) -> Words {
    std::array::from_fn(|at| a[at] ^ b[at])
}

/// Number of leading zero bits, which two ids share if this is their distance.
pub fn shared(distance: &Words) -> usize {
    let word = distance.iter().position(|word| *word != 0);
    word.map_or(256, |at| 64 * at + distance[at].leading_zeros() as usize)
}

fn bit(id: &Words, at: usize) -> bool {
    (id[at / 64] >> (63 - at % 64)) & 1 == 1
}

fn with_bit_inverted(id: &Words, at: usize) -> Words {
    let mut other = *id;
    other[at / 64] ^= 1 << (63 - at % 64);
    other
}

/// What a liar answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The 20 liars closest to the target. They lie deeper than contacts of a bucket can.
    Closest,
    /// 20 random liars of the bucket that contains the target: nothing in one answer shows it.
    Uniform,
    /// As many of the closest liars as the plausibility test of `pk-proto` accepts.
    Sharp,
}

/// A network.
pub struct Net {
    /// The ids, in order. A node is its index.
    pub ids: Vec<Words>,
    pub dead: Vec<bool>,
    pub liar: Vec<bool>,
    lie: Lie,
    liars: Option<Box<Liars>>,
    seed: u64,
    /// Standard deviation of the logarithm of round trips, in hundredths.
    pub sigma: u32,
}

struct Liars {
    net: Net,
    /// Index of each in the whole network.
    index: Vec<u32>,
}

impl Net {
    /// Creates a network. `dead` and `liars` are shares, in percent.
    pub fn new(mut ids: Vec<Words>, seed: u64, dead: u32, liars: u32, lie: Lie) -> Self {
        ids.sort_unstable();
        let draw = |salt: u64, share: u32| -> Vec<bool> {
            let drawn = (0..ids.len() as u64).map(|at| mix(mix(seed ^ salt) ^ at) % 100);
            drawn.map(|drawn| drawn < u64::from(share)).collect()
        };
        let (dead, liar) = (draw(0xdead, dead), draw(0xbad, liars));
        let index: Vec<u32> =
            (0..ids.len()).filter(|at| liar[*at] && !dead[*at]).map(|at| at as u32).collect();
        let liars = (!index.is_empty()).then(|| {
            let ids = index.iter().map(|at| ids[*at as usize]).collect();
            Box::new(Liars { net: Self::new(ids, seed, 0, 0, lie), index })
        });
        Self { ids, dead, liar, lie, liars, seed, sigma: 50 }
    }

    /// The range of the ids that share this number of bits with `id`.
    fn range(&self, id: &Words, bits: usize) -> (usize, usize) {
        let (mut from, mut to) = (0, self.ids.len());
        for at in 0..bits {
            let mid = from + self.ids[from..to].partition_point(|other| !bit(other, at));
            (from, to) = if bit(id, at) { (mid, to) } else { (from, mid) };
        }
        (from, to)
    }

    /// The ranges of the sibling subtrees of a node, the largest first.
    fn siblings(&self, node: usize) -> Vec<(usize, usize)> {
        let (mut from, mut to, mut at, mut ranges) = (0, self.ids.len(), 0, Vec::new());
        while to - from > 1 && at < 256 {
            let mid = from + self.ids[from..to].partition_point(|other| !bit(other, at));
            let (inside, sibling) = ((from, mid), (mid, to));
            let (inside, sibling) =
                if bit(&self.ids[node], at) { (sibling, inside) } else { (inside, sibling) };
            (from, to) = inside;
            ranges.push(sibling);
            at += 1;
        }
        ranges
    }

    fn sample(&self, (from, to): (usize, usize), salt: u64) -> Vec<u32> {
        let size = to - from;
        if size <= K {
            return (from as u32..to as u32).collect();
        }
        let (mut chosen, mut draw) = (Vec::with_capacity(K), mix(self.seed ^ salt));
        while chosen.len() < K {
            draw = mix(draw);
            let at = (from + (draw % size as u64) as usize) as u32;
            if !chosen.contains(&at) {
                chosen.push(at);
            }
        }
        chosen
    }

    fn bucket(&self, node: usize, at: usize, range: (usize, usize)) -> Vec<u32> {
        self.sample(range, mix(node as u64) ^ at as u64)
    }

    /// All contacts of a node.
    pub fn table(&self, node: usize) -> Vec<u32> {
        let siblings = self.siblings(node).into_iter().enumerate();
        siblings.flat_map(|(at, range)| self.bucket(node, at, range)).collect()
    }

    /// What a node answers to a closest-nodes request.
    pub fn answer(&self, node: usize, target: &Words) -> Vec<u32> {
        match &self.liars {
            Some(liars) if self.liar[node] => self.lie(liars, node, target),
            _ => self.closest_known(node, target),
        }
    }

    /// The contacts of a node that are closest to the target.
    pub fn closest_known(&self, node: usize, target: &Words) -> Vec<u32> {
        let siblings = self.siblings(node);
        let own = shared(&xor(&self.ids[node], target));
        let mut answer = Vec::with_capacity(K);
        let mut add = |mut group: Vec<u32>| {
            group.sort_unstable_by_key(|at| xor(&self.ids[*at as usize], target));
            answer.extend(group.into_iter().take(K - answer.len()));
            answer.len() < K
        };
        let bucket = |at: usize| self.bucket(node, at, siblings[at]);
        if own >= siblings.len() || add(bucket(own)) {
            let nearer = (own + 1..siblings.len()).flat_map(bucket).collect();
            if add(nearer) {
                let _ = (0..own.min(siblings.len())).rev().all(|at| add(bucket(at)));
            }
        }
        answer
    }

    fn lie(&self, liars: &Liars, node: usize, target: &Words) -> Vec<u32> {
        let Liars { net, index } = liars;
        let own = shared(&xor(&self.ids[node], target));
        let (from, to) = net.range(target, own + 1);
        let chosen = match self.lie {
            Lie::Closest => net.closest(target, K),
            _ if to - from <= K => net.closest(target, K),
            Lie::Uniform => net.sample((from, to), mix(node as u64) ^ 0x11e),
            Lie::Sharp => {
                let excess = |at: &u32| {
                    let depth = shared(&xor(&net.ids[*at as usize], target));
                    depth.saturating_sub(own + 1)
                };
                let (mut sum, mut chosen) = (0, net.closest(target, K));
                let shell = net.range(&with_bit_inverted(target, own + 1), own + 2);
                if shell.1 - shell.0 > 2 * K {
                    chosen.retain(|at| {
                        sum += excess(at);
                        sum <= 55
                    });
                    let rest = net.sample(shell, mix(node as u64) ^ 0x11e);
                    chosen.extend(rest.into_iter().take(K - chosen.len()));
                }
                chosen
            }
        };
        let mut chosen: Vec<u32> = chosen.into_iter().map(|at| index[at as usize]).collect();
        chosen.retain(|at| *at as usize != node);
        chosen.sort_unstable_by_key(|at| xor(&self.ids[*at as usize], target));
        chosen
    }

    /// The living nodes closest to a target, the nearest first.
    pub fn closest(&self, target: &Words, count: usize) -> Vec<u32> {
        let mut closest = Vec::new();
        self.descend((0, self.ids.len()), 0, target, count, &mut closest);
        closest
    }

    fn descend(
        &self,
        (from, to): (usize, usize),
        at: usize,
        target: &Words,
        count: usize,
        closest: &mut Vec<u32>,
    ) {
        if closest.len() >= count || from >= to {
            return;
        }
        if to - from <= 32 {
            let mut live: Vec<u32> =
                (from..to).filter(|at| !self.dead[*at]).map(|at| at as u32).collect();
            live.sort_unstable_by_key(|at| xor(&self.ids[*at as usize], target));
            closest.extend(live.into_iter().take(count - closest.len()));
            return;
        }
        let mid = from + self.ids[from..to].partition_point(|other| !bit(other, at));
        let (mut near, mut far) = ((from, mid), (mid, to));
        if bit(target, at) {
            (near, far) = (far, near);
        }
        self.descend(near, at + 1, target, count, closest);
        self.descend(far, at + 1, target, count, closest);
    }

    /// The round trip between two nodes in microseconds: log-normal, with a median of 100 ms.
    pub fn round_trip(&self, a: usize, b: usize) -> u64 {
        let hash = mix(self.seed ^ mix(a as u64) ^ (b as u64).rotate_left(32));
        let unit = |hash: u64| ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let (radius, angle) = (unit(hash), unit(mix(hash)));
        let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        (100_000.0 * (f64::from(self.sigma) / 100.0 * normal).exp()) as u64
    }

    /// A node that lives and does not lie, from `at` on.
    pub fn honest_from(&self, mut at: usize) -> usize {
        while self.dead[at] || self.liar[at] {
            at = (at + 1) % self.ids.len();
        }
        at
    }
}
