//! Turns checks into tests.

use std::panic::{AssertUnwindSafe, catch_unwind};

use berth_e2e::bundle::{Bundle, Runtime};

/// A bundle for `berth-oci`.
pub fn berth() -> Bundle {
    Bundle::new(&Runtime::berth()).unwrap()
}

/// The check must pass with one of the others.
pub fn reference(check: fn(&mut Bundle)) {
    let other = |name| check(&mut Bundle::new(&Runtime::other(name).unwrap()).unwrap());
    if catch_unwind(AssertUnwindSafe(|| other("crun"))).is_err() {
        other("runc");
    }
}

/// `name` is checked with all, `alone name` with `berth-oci` only.
macro_rules! checks {
    ($($name:ident)+; alone $($alone:ident)*) => {
        $(mod $name {
            #[test]
            fn berth() {
                super::$name(&mut crate::checks::berth());
            }

            #[test]
            fn reference() {
                crate::checks::reference(super::$name);
            }
        })+
        $(mod $alone {
            #[test]
            fn berth() {
                super::$alone(&mut crate::checks::berth());
            }
        })*
    };
}
pub(crate) use checks;
