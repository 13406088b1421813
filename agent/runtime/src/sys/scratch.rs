//! Memory for a child that runs in the memory of this process ([`super::sharing`]), apart from what this process has.
//!
//! Such a child can be killed at any moment: for want of memory, or by the container that it is about to become a part of, whose
//! processes see it. If it took or gave back memory at that moment, the lists of what is free would stay as they are then, half
//! changed, and it is this process that goes on with them: a container could break the shim by killing often enough. So a child
//! takes its memory from a region of its own, whose only state is where the unused part begins. What it gives back is not used
//! again, unless it was taken last, and what belongs to others it does not give back.
//!
//! It needs [`Heap`] as the program's allocator.

use std::alloc::{GlobalAlloc, Layout, System, alloc, dealloc};
use std::cell::Cell;
use std::io;
use std::ptr::null_mut;

/// The region. A container's `/etc/passwd` and `/etc/group` fit, of which 4 MB each are read, and which are three times as long if they
/// are no text. It is address space only; a page is taken when it is written for the first time.
const SIZE: usize = 64 << 20;
/// After a child that took no more it stays taken. Most need less, and to take and give back a page each time costs a
/// twentieth of what a child does.
const KEPT: usize = 4 << 10;

// Of a thread, as the child has the memory of one, and with it what the thread has for itself. Without a start or an end of their own
// they are there for an allocator, too.
thread_local! {
    /// Where the region begins; 0 before the first child.
    static BASE: Cell<usize> = const { Cell::new(0) };
    /// Where its unused part begins.
    static NEXT: Cell<usize> = const { Cell::new(0) };
    /// Where that part began when it was smallest.
    static TOP: Cell<usize> = const { Cell::new(0) };
    /// What [`is_there`] found.
    static THERE: Cell<Option<bool>> = const { Cell::new(None) };
    /// Whether it is a child's turn. The thread waits meanwhile.
    static CHILD: Cell<bool> = const { Cell::new(false) };
}

/// The allocator of programs that make such children: that of the standard library for everybody but them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

// Not made a part of whoever calls them: that would be a tenth of a shim's code.
// SAFETY: blocks come from the system's allocator, and go back to it, or from the region: there they begin behind all that have been
// given out and not been taken back, aligned, and within its end. While a child runs, the thread whose region it is does not.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if CHILD.get() {
            return take(layout);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if CHILD.get() {
            let block = take(layout);
            if !block.is_null() {
                // SAFETY: the block is new and as long as that. It may have been another's.
                unsafe { block.write_bytes(0, layout.size()) };
            }
            return block;
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_inside(block) {
            let (start, end) = (block.addr(), block.addr() + layout.size());
            // Others are given back with all.
            if NEXT.get() == end {
                NEXT.set(start);
            }
        } else if !CHILD.get() {
            // SAFETY: the caller's promise; the block is the system's.
            unsafe { System.dealloc(block, layout) };
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let inside = is_inside(block);
        if !inside && !CHILD.get() {
            // SAFETY: the caller's promise; the block is the system's.
            return unsafe { System.realloc(block, layout, size) };
        }
        let start = block.addr();
        let last = inside && NEXT.get() == start + layout.size();
        if last && let Some(end) = start.checked_add(size).filter(|end| *end <= BASE.get() + SIZE) {
            use_up_to(end);
            return block;
        }
        // SAFETY: the layout is that of the block with another size, which the caller has seen to be possible. The blocks are two.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

fn is_inside(block: *mut u8) -> bool {
    // Before there is a region no block is at 0.
    block.addr().wrapping_sub(BASE.get()) < SIZE && BASE.get() != 0
}

fn take(layout: Layout) -> *mut u8 {
    let base = BASE.get();
    let start = NEXT.get().next_multiple_of(layout.align());
    match start.checked_add(layout.size()).filter(|end| *end <= base + SIZE) {
        Some(end) => {
            use_up_to(end);
            start as *mut u8
        }
        None => null_mut(),
    }
}

fn use_up_to(end: usize) {
    NEXT.set(end);
    TOP.set(TOP.get().max(end));
}

/// Whether [`Heap`] is the allocator of this program.
pub fn is_there() -> bool {
    let there = THERE.get().unwrap_or_else(look);
    THERE.set(Some(there));
    there
}

fn look() -> bool {
    const ONE: Layout = Layout::new::<u64>();
    let Ok(_scratch) = Scratch::begin_unchecked() else { return false };
    // SAFETY: it has a size, and is given back as it was taken.
    unsafe {
        let block = alloc(ONE);
        let inside = is_inside(block);
        dealloc(block, ONE);
        inside
    }
}

/// What a child takes while this lives it takes from the region. When it is dropped, all that is gone.
#[derive(Debug)]
pub struct Scratch(());

impl Scratch {
    /// From now on memory comes from the region, and none is given back to anybody else.
    ///
    /// # Errors
    /// `Unsupported` where [`Heap`] is not the program's allocator; when there is no room for the region.
    pub fn begin() -> io::Result<Scratch> {
        if is_there() { Scratch::begin_unchecked() } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn begin_unchecked() -> io::Result<Scratch> {
        let mut base = BASE.get();
        if base == 0 {
            base = map()?;
            BASE.set(base);
        }
        NEXT.set(base);
        CHILD.set(true);
        Ok(Scratch(()))
    }

    /// The child has left: memory comes from where it usually does. What the child has taken may still be looked at.
    pub fn close(&self) {
        CHILD.set(false);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.close();
        let base = BASE.get();
        if TOP.get() > base + KEPT {
            // SAFETY: nobody has anything there any more. A failure, as with locked memory, leaves the pages where they are.
            unsafe { libc::madvise(base as *mut libc::c_void, TOP.get() - base, libc::MADV_DONTNEED) };
        }
        NEXT.set(base);
        TOP.set(base);
    }
}

fn map() -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: new memory that nobody knows of.
    unsafe {
        let base = libc::mmap(null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A huge page would be more than a shim has altogether. Kernels without them refuse.
        libc::madvise(base, SIZE, libc::MADV_NOHUGEPAGE);
        Ok(base.addr())
    }
}
