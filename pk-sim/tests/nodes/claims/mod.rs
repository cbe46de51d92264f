//! Cross-signing between real nodes in the simulator.

mod crash;
mod cycles;
mod hostile;
mod hostile_answers;
mod kit;
mod life;
mod limits;
mod links;
mod other_types;
mod random_faults;
mod turns;
mod unknown;
mod victim;
