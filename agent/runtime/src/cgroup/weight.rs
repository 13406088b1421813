//! From the cpu shares of cgroup v1, which the OCI spec speaks, to the weights of v2.

/// The two formulas in use. Kubernetes has both: kubelet writes the weights of pods and tiers itself with the old
/// one, and newer runtimes write those of containers with the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuWeight {
    /// One processor (1024 shares) becomes the default weight 100. For containers.
    #[default]
    Curved,
    /// Maps the ends of both ranges onto each other; 1024 shares become 39. For pods and their tiers.
    Linear,
}

impl CpuWeight {
    /// The weight, 1 to 10000, of a number of shares (2 to 262144; values beyond are cut).
    pub fn of_shares(self, shares: u64) -> u64 {
        let shares = shares.clamp(2, 262_144);
        match self {
            CpuWeight::Linear => 1 + (shares - 2) * 9999 / 262_142,
            CpuWeight::Curved => {
                let l = (shares as f64).log2();
                let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
                // 2 and 262144 shares must hit the ends exactly, whatever the rounding of the logarithm.
                ((10_f64.powf(exponent) - 1e-9).ceil() as u64).clamp(1, 10_000)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::CpuWeight::{Curved, Linear};

    #[test]
    fn known_points() {
        for (shares, linear, curved) in [(2, 1, 1), (1024, 39, 100), (262_144, 10_000, 10_000), (0, 1, 1)] {
            assert_eq!(Linear.of_shares(shares), linear, "linear {shares}");
            assert_eq!(Curved.of_shares(shares), curved, "curved {shares}");
        }
    }

    #[test]
    fn more_shares_never_weigh_less() {
        for formula in [Linear, Curved] {
            let mut last = 0;
            for shares in (2..262_144).step_by(97) {
                let weight = formula.of_shares(shares);
                assert!(weight >= last && (1..=10_000).contains(&weight), "{formula:?} {shares} {weight}");
                last = weight;
            }
        }
    }
}
