//! The memory that a thread has allocated, counted by the allocator of the whole program.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// Starts a new peak; the bytes that this thread has allocated and not freed.
pub(crate) fn reset_peak() -> usize {
    PEAK.set(ALLOCATED.get());
    ALLOCATED.get()
}

/// The most bytes that this thread had allocated at a time since [`reset_peak`].
pub(crate) fn peak() -> usize {
    PEAK.get()
}

// SAFETY: the system's allocator does the work; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.get().saturating_add(layout.size());
        ALLOCATED.set(now);
        PEAK.set(PEAK.get().max(now));
        // SAFETY: the caller keeps the rules of this method, which are those of the other.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Saturating, as another thread may have allocated it.
        ALLOCATED.set(ALLOCATED.get().saturating_sub(layout.size()));
        // SAFETY: as above; the pointer is one that `alloc` got from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}
