//! The memory of this process.

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

/// Takes the whole pages of a constant out of this process' memory until somebody reads it again.
pub fn forget_pages(constant: &'static [u8]) {
    const PAGE: usize = 4 << 10;
    let range = constant.as_ptr_range();
    let start = (range.start as usize).next_multiple_of(PAGE);
    let end = range.end as usize & !(PAGE - 1);
    if start < end {
        // SAFETY: a constant that is never written lies in a private read-only mapping of the executable, whose pages come
        // back with the same bytes. A failure, as with locked memory, changes nothing.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}
