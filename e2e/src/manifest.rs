//! Manifests for tests.

/// The image that every test node has.
pub const IMAGE: &str = "docker.io/library/demo:latest";

/// A pod with one container `main` that runs a line of shell.
pub fn pod(name: &str, shell: &str) -> String {
    Builder::new(name).shell(shell).yaml()
}

/// Builds the manifest of a pod with one container, `main`.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    image: String,
    pull: &'static str,
    command: Option<String>,
    restart: &'static str,
    grace: u32,
    labels: String,
    pod_extra: String,
    extra: String,
}

impl Builder {
    /// A pod that is restarted always and has a grace period of one second.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            image: IMAGE.into(),
            pull: "Never",
            command: None,
            restart: "Always",
            grace: 1,
            labels: "{}".into(),
            pod_extra: String::new(),
            extra: String::new(),
        }
    }

    /// What it runs, as a line of shell.
    pub fn shell(mut self, line: &str) -> Self {
        self.command = Some(line.into());
        self
    }

    /// `restartPolicy`.
    pub fn restart(mut self, policy: &'static str) -> Self {
        self.restart = policy;
        self
    }

    /// `terminationGracePeriodSeconds`.
    pub fn grace(mut self, seconds: u32) -> Self {
        self.grace = seconds;
        self
    }

    /// `image` and `imagePullPolicy`.
    pub fn image(mut self, reference: &str, pull: &'static str) -> Self {
        self.image = reference.into();
        self.pull = pull;
        self
    }

    /// `metadata.labels` as a YAML flow map.
    pub fn labels(mut self, flow: &str) -> Self {
        self.labels = flow.into();
        self
    }

    /// A line of YAML among the container's fields, such as `ports: [{ containerPort: 80 }]`.
    pub fn with(mut self, line: &str) -> Self {
        self.extra += &format!("      {line}\n");
        self
    }

    /// A line of YAML among the fields of `spec`.
    pub fn with_pod(mut self, line: &str) -> Self {
        self.pod_extra += &format!("  {line}\n");
        self
    }

    /// The manifest.
    pub fn yaml(&self) -> String {
        let Self { name, image, pull, restart, grace, labels, pod_extra, extra, .. } = self;
        // A JSON string is a YAML string, whatever it contains.
        let command = self
            .command
            .as_ref()
            .map(|line| format!("      command: {}\n", serde_json::json!(["sh", "-c", line])));
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {labels}\nspec:\n  restartPolicy: {restart}\n  \
             terminationGracePeriodSeconds: {grace}\n{pod_extra}  containers:\n    - name: main\n      image: {image:?}\n      \
             imagePullPolicy: {pull}\n{}{extra}",
            command.unwrap_or_default()
        )
    }
}
