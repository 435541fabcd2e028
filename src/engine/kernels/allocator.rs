//! The allocator's one function that the language has no name for. No kernel, but foreign code, which is called here alone.

/// Gives memory that the calling thread has freed, or that others freed for it, back to the system at once. Without it that
/// happens when the thread allocates again: one that waits for its next task keeps what the last one left.
pub fn release_memory() {
    // SAFETY: it takes no pointer, and may be called by every thread at any time, also if mimalloc is not the global allocator:
    // then there is nothing of its own that it could free.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
