//! See Cargo.toml. Not part of the product: the `unsafe` code that an allocator needs is here, and
//! nowhere else.
#![no_std]

extern crate alloc;
// An unused dependency is not linked unless it is named.
extern crate pk_proto;

use core::alloc::{GlobalAlloc, Layout};

struct Nothing;

// SAFETY: a null pointer is the permitted answer "out of memory", and there is nothing to free.
unsafe impl GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Nothing = Nothing;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
