//! The words of `berth-oci`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// An OCI runtime.
#[derive(Debug, Parser)]
#[command(
    name = "berth-oci",
    version = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0"),
    disable_help_subcommand = true,
    propagate_version = false
)]
pub struct Cli {
    /// Folder for the records of containers (should be in memory)
    #[arg(long, value_name = "DIR", default_value = "/run/berth-oci")]
    pub root: PathBuf,
    /// File to append errors and warnings to
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Form of the lines in it
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Show warnings also when they go to no file
    #[arg(long)]
    pub debug: bool,
    /// Take cgroupsPath as slice:prefix:name and ask systemd for the cgroup
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Accepted for other runtimes' callers; what is possible is found out [values: true, false, auto]
    #[arg(long, value_name = "WHETHER", value_parser = ["true", "false", "auto"])]
    pub rootless: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// time="..." level=... msg="..."
    Text,
    /// An object per line
    Json,
}

impl From<LogFormat> for berth_runtime::oci::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

/// Form of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container, which waits to be started
    Create(CreateArgs),
    /// Create and start a container, wait for its end and delete it
    Run(RunArgs),
    /// Let the program of a created container run
    Start {
        /// Id of the container
        id: String,
    },
    /// Print the state of a container
    State {
        /// Id of the container
        id: String,
    },
    /// Send a signal to a container's first process
    Kill {
        /// Send it to all processes
        #[arg(long, short)]
        all: bool,
        /// Id of the container
        id: String,
        /// Name or number
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Delete a container that has ended
    Delete {
        /// Kill it when it has not
        #[arg(long, short)]
        force: bool,
        /// Id of the container
        id: String,
    },
    /// Run a process in a running container
    Exec(Box<ExecArgs>),
    /// List the processes of a container
    Ps {
        /// Form of the output
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Id of the container
        id: String,
        /// Options for ps(1), whose lines are shown
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Stop all processes of a container
    Pause {
        /// Id of the container
        id: String,
    },
    /// Let the processes of a paused container go on
    Resume {
        /// Id of the container
        id: String,
    },
    /// Change limits of a container
    Update(Box<UpdateArgs>),
    /// Print what a container uses, again and again
    Events {
        /// Print it once
        #[arg(long)]
        stats: bool,
        /// Time between two, such as 5s or 1m30s
        #[arg(long, default_value = "5s")]
        interval: String,
        /// Id of the container
        id: String,
    },
    /// Print what this runtime can do
    Features,
    /// Write a config.json to begin with
    Spec {
        /// Folder to write it to
        #[arg(long, short)]
        bundle: Option<PathBuf>,
        /// For a user other than root
        #[arg(long)]
        rootless: bool,
    },
    /// List containers
    List {
        /// Form of the output
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Print ids only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Not supported
    #[command(hide = true)]
    Checkpoint {
        /// Whatever
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Not supported
    #[command(hide = true)]
    Restore {
        /// Whatever
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Folder with config.json [default: the current one]
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Socket that gets the master of the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of the first process
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// File for the id of the first process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Move the root over the host's, where pivot_root cannot be used
    #[arg(long)]
    pub no_pivot: bool,
    /// Leave the session keyring as it is, which is always so
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Hand so many descriptors from 3 on to the program
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Id of the new container
    pub id: String,
}

/// Of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// How to create it.
    #[command(flatten)]
    pub create: CreateArgs,
    /// Return when it runs
    #[arg(long, short)]
    pub detach: bool,
    /// Do not delete it at its end
    #[arg(long)]
    pub keep: bool,
    /// Orphans are nobody's here, which is always so
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Socket that gets the master of the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of the process
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working folder
    #[arg(long)]
    pub cwd: Option<PathBuf>,
    /// Variable to add
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// User, as numbers
    #[arg(long, short, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Further group
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with a process as in config.json
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return when it runs
    #[arg(long, short)]
    pub detach: bool,
    /// File for its process id
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// Capability to add
    #[arg(long, short, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Hand so many descriptors from 3 on to the program
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Cgroup below the container's, on cgroup v1 also another one for some controllers
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    pub cgroup: Vec<String>,
    /// Also in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// Id of the container
    pub id: String,
    /// Program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Of `update`.
#[derive(Debug, Default, Args)]
pub struct UpdateArgs {
    /// File with resources as in config.json, - for standard input; the flags do not count then
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Weight of block I/O
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// CPU period, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// CPU time per period, in microseconds
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// CPU shares
    #[arg(long, visible_alias = "cpu-shares", value_name = "N")]
    pub cpu_share: Option<u64>,
    /// Period of real-time scheduling, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_period: Option<u64>,
    /// Real-time CPU time per period, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_runtime: Option<i64>,
    /// 1 for idle scheduling, 0 for the usual one
    #[arg(long, value_name = "N")]
    pub cpu_idle: Option<i64>,
    /// Processors to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Memory limit, in bytes, or with k, m, g; -1 for none
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Soft memory limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Limit of memory and swap
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Limit of processes
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Id of the container
    pub id: String,
}
