//! The memory of this process.

/// Keeps a process of a few busy threads small: one arena, whose free end goes back to the kernel early.
pub fn keep_small() {
    // SAFETY: mallopt only stores numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
        // A number given is a number kept: otherwise the threshold grows with what is freed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        // What is free is joined at once. Otherwise every piece of more than a kilobyte that is asked for has all small ones looked
        // through first, and between two events most of what that touches has left the caches.
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

/// Gives free pages back to the kernel.
pub fn trim() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes the program's own code and constants out of this process' memory: what is used again comes back from the page
/// cache, a few pages a fault. What has run only once, such as the start, stays out.
pub fn forget_program() {
    // Given by the linker: where the program's file begins in memory, and where its code ends. Constants lie between.
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let (start, end) = (&raw const __executable_start, &raw const etext);
    forget(start as usize, end as usize);
}

/// Takes the whole pages of a constant out of this process' memory until somebody reads it again.
pub fn forget_pages(constant: &'static [u8]) {
    let range = constant.as_ptr_range();
    forget(range.start as usize, range.end as usize);
}

/// The whole pages of a range that lies in the program's code or constants.
fn forget(start: usize, end: usize) {
    const PAGE: usize = 4 << 10;
    let (start, end) = (start.next_multiple_of(PAGE), end & !(PAGE - 1));
    if start < end {
        // SAFETY: code and constants, which are never written, lie in private read-only mappings of the executable, whose
        // pages come back with the same bytes. A failure, as with locked memory, changes nothing.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Memory of this process that holds pages of its executable, in KB.
    fn of_program() -> u64 {
        let own = std::env::current_exe().unwrap().display().to_string();
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut inside, mut sum) = (false, 0);
        for line in text.lines() {
            let first = line.split_whitespace().next().unwrap_or_default();
            if !first.ends_with(':') {
                inside = line.ends_with(&own) && !line.contains(" rw-p ");
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| inside) {
                sum += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn a_program_that_is_forgotten_runs_on_in_less_memory() {
        let before = of_program();
        forget_program();
        let after = of_program();
        assert!(after < before, "{before} KB before, {after} KB after");
        assert!(of_program() > 0);
    }
}
