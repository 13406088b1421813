//! The C library's heap.

/// Keeps a process of a few busy threads small: one arena, whose free end goes back to the kernel early.
pub fn keep_small() {
    // SAFETY: mallopt only stores numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
        // A number given is a number kept: otherwise the threshold grows with what is freed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives free pages back to the kernel.
pub fn trim() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
