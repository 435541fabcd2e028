//! What the language has no name for at the allocator. No kernel, but foreign code, which is called here alone.

/// From now on the pages that a thread leaves behind when it ends go back to the system, however few of a segment they are: another
/// thread may take over the rest late, or never.
pub fn purge_with_threads() {
    /// `mi_option_abandoned_page_purge` in `mimalloc.h` of version 2, which the crate has no name for.
    const ABANDONED_PAGE_PURGE: libmimalloc_sys::mi_option_t = 12;
    // SAFETY: options are numbers that the allocator reads when it needs them, and may be set at any time.
    unsafe { libmimalloc_sys::mi_option_set(ABANDONED_PAGE_PURGE, 1) }
}

/// From now on freed memory stays with the process for a second before it goes back to the system; without it that is a hundredth, less
/// than a run takes: the answers of each would lie in new pages, whose first touch costs more than to write them.
pub fn keep_freed_memory() {
    /// `mi_option_purge_delay` in `mimalloc.h` of version 2, in milliseconds, and `mi_option_arena_purge_mult`: how many times as long
    /// what is larger than a segment stays.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const ARENA_PURGE_MULT: libmimalloc_sys::mi_option_t = 24;
    const MILLISECONDS: std::ffi::c_long = 1000;
    // SAFETY: options are numbers that the allocator reads when it needs them, and may be set at any time.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, MILLISECONDS);
        libmimalloc_sys::mi_option_set(ARENA_PURGE_MULT, 1);
    }
}

/// Asks the system for huge pages behind memory that was not written to yet, and is kept: to touch it costs a fault for each 2 MiB instead
/// of each 4 KiB, and to read it fewer walks of the page tables. What is small stays as it is. The system may not do so, which only
/// costs time.
pub fn prefer_huge_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        const PAGE: usize = 2 << 20;
        const WORTH_BYTES: usize = 1 << 20;
        let bytes = size_of_val(memory);
        if bytes < WORTH_BYTES {
            return;
        }
        // Whole pages: what lies around it is mostly of the same kind.
        let before = memory.as_ptr() as usize % PAGE;
        let start = memory.as_mut_ptr().cast::<u8>().wrapping_sub(before);
        let len = (before + bytes).next_multiple_of(PAGE);
        // SAFETY: the advice changes neither what memory holds nor whether it may be accessed, of this slice and of what lies around it.
        let _ = unsafe { madvise(start.cast(), len, Advice::LinuxHugepage) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Gives memory that the calling thread has freed, or that others freed for it, back to the system at once. Without it that
/// happens when the thread allocates again: one that waits for its next task keeps what the last one left.
pub fn release_memory() {
    // SAFETY: it takes no pointer, and may be called by every thread at any time, also if mimalloc is not the global allocator:
    // then there is nothing of its own that it could free.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
