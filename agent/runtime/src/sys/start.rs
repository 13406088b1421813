//! Where a program without the standard library's own start begins.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

/// The C library calls it, which has kept the words for [`std::env::args_os`]. What the standard library would do and is needed
/// is done here: the three standard streams are open, so that no other file gets their numbers, and who writes to a pipe that
/// nobody reads gets an error.
#[unsafe(no_mangle)]
extern "C" fn main(_words: c_int, _list: *const *const c_char) -> c_int {
    let nothing = |fd| libc::pollfd { fd, events: 0, revents: 0 };
    let mut streams = [nothing(0), nothing(1), nothing(2)];
    // SAFETY: the list is live, the path a C string, and no other thread is there yet.
    unsafe {
        if libc::poll(streams.as_mut_ptr(), 3, 0) != 0 {
            for _ in streams.iter().filter(|stream| stream.revents & libc::POLLNVAL != 0) {
                // It gets the lowest number that is free.
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    crate::main().into()
}
