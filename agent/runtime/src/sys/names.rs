//! How the C library looks up names of machines.

/// Has names looked up in `/etc/hosts` and by DNS, whatever `/etc/nsswitch.conf` says, as Go's own resolver does it: the program is
/// linked statically, and what that file may name besides is in shared libraries, which fit one release of the C library only.
/// To be called before the first name is looked up and before there is a second thread.
pub fn look_up_by_files_and_dns() {
    // `int __nss_configure_lookup(const char *database, const char *services)`, from nss.h. No crate has it.
    #[cfg(target_env = "gnu")]
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const libc::c_char,
            services: *const libc::c_char,
        ) -> libc::c_int;
    }
    // SAFETY: both are C strings, which the library copies. It fails only for databases that it does not know.
    #[cfg(target_env = "gnu")]
    unsafe {
        __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr());
    }
}
