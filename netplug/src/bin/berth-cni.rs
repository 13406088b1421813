//! `berth-cni` without the rest of berth: the CNI plugin alone, for machines where berth's agent is not.

fn main() -> std::process::ExitCode {
    berth_netplug::cni::main()
}
