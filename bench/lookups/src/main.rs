//! `cargo run --release -- nodes=100000 seeds=20 first=40000 each=100 closest one,dead=30 …`:
//! measures cells (`src/cells.rs`) and prints one line each. `doubt_find=60` and the like change a
//! setting of `Config::search`.

use pk_bench_lookups::cells::{Cell, HEADER, Line, configured};

fn main() -> Result<(), String> {
    let (mut nodes, mut seeds, mut first, mut each) = (100_000, 20, 40_000, 100);
    let (mut cells, mut settings, mut why) = (Vec::<Cell>::new(), Vec::new(), false);
    for word in std::env::args().skip(1) {
        if ["closest", "one", "absent"].iter().any(|goal| word.starts_with(goal)) {
            cells.push(word.parse()?);
            continue;
        }
        if word == "why" {
            why = true;
            continue;
        }
        let (name, value) = word.split_once('=').ok_or(format!("{word}: no value"))?;
        let value: u64 = value.parse().map_err(|_| format!("{word}: not a number"))?;
        match name {
            "nodes" => nodes = value as usize,
            "seeds" => seeds = value,
            "first" => first = value,
            "each" => each = value,
            _ => settings.push((name.to_owned(), value as u32)),
        }
    }
    let config = configured(&settings)?;
    println!("{nodes} nodes, seeds {first}–{}, {settings:?}\n{HEADER}", first + seeds - 1);
    for cell in cells {
        let all = (first..first + seeds).flat_map(|seed| cell.measure(nodes, seed, each, &config));
        let all: Vec<_> = all.collect();
        for missed in all.iter().filter(|_| why).flat_map(|one| &one.missed) {
            println!("missed: {missed}");
        }
        println!("{}", Line(&cell.name, all));
    }
    Ok(())
}
