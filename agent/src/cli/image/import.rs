//! `berth image import`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use berth_image::{ImportOptions, Store};
use clap::Args;

use super::super::failure::Usage;
use super::super::output;
use super::{progress, short};

/// Words of `berth image import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// Tar archive of a root file system (also compressed with gzip or zstd), or - for standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Name of the image
    #[arg(value_name = "NAME")]
    reference: String,
    /// Arguments, or the program when there is no entry point: words, or a JSON list
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,
    /// The program and its first arguments: words, or a JSON list
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Environment variable; may be given more than once
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Folder in which the program starts
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, as in 1000, 1000:1000 or www-data
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Label; may be given more than once
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Dockerfile instruction: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR; may be given more than once
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Print only the image's id
    #[arg(short, long)]
    quiet: bool,
}

/// Makes an image of a root file system.
pub fn run(store: &Store, args: ImportArgs) -> anyhow::Result<()> {
    let options = options(&args)?;
    let image = if args.file.as_os_str() == "-" {
        store.import(io::stdin().lock(), &args.reference, &options)?
    } else {
        let file = File::open(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
        let reader: Box<dyn Read> = Box::new(file);
        store.import(reader, &args.reference, &options)?
    };
    let name = image.repo_tags.first().unwrap_or(&args.reference);
    let text = if args.quiet {
        format!("{}\n", image.id)
    } else {
        format!("Imported {name} ({})\n", short(&image.id))
    };
    output::print(&text)?;
    Ok(())
}

fn options(args: &ImportArgs) -> anyhow::Result<ImportOptions> {
    let mut options =
        ImportOptions { progress: (!args.quiet).then(progress::reporter), ..ImportOptions::default() };
    for line in &args.change {
        change(&mut options, line)?;
    }
    if let Some(text) = &args.cmd {
        options.cmd = words("--cmd", text)?;
    }
    if let Some(text) = &args.entrypoint {
        options.entrypoint = words("--entrypoint", text)?;
    }
    for pair in &args.env {
        set_env(&mut options, pair)?;
    }
    for pair in &args.label {
        options.labels.extend(pairs("--label", pair)?);
    }
    options.working_dir = args.workdir.clone().unwrap_or(options.working_dir);
    options.user = args.user.clone().unwrap_or(options.user);
    Ok(options)
}

/// One Dockerfile instruction.
fn change(options: &mut ImportOptions, line: &str) -> anyhow::Result<()> {
    let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        bail!(Usage(format!("--change {line:?} has no value")));
    }
    let list = |rest: &str| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match word.to_ascii_uppercase().as_str() {
        "CMD" => options.cmd = command(rest)?,
        "ENTRYPOINT" => options.entrypoint = command(rest)?,
        // The old form has one variable and no equals sign: ENV NAME the rest of the line.
        "ENV" if !rest.split_whitespace().next().is_some_and(|first| first.contains('=')) => {
            let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            set_env(options, &format!("{name}={}", value.trim()))?;
        }
        "ENV" => {
            for (name, value) in pairs("ENV", rest)? {
                set_env(options, &format!("{name}={value}"))?;
            }
        }
        "LABEL" => options.labels.extend(pairs("LABEL", rest)?),
        "EXPOSE" => options.exposed_ports.extend(
            list(rest).into_iter().map(|port| if port.contains('/') { port } else { format!("{port}/tcp") }),
        ),
        "VOLUME" if rest.starts_with('[') => options.volumes.extend(words("VOLUME", rest)?),
        "VOLUME" => options.volumes.extend(list(rest)),
        "USER" => rest.clone_into(&mut options.user),
        "WORKDIR" => rest.clone_into(&mut options.working_dir),
        "STOPSIGNAL" => rest.clone_into(&mut options.stop_signal),
        other => bail!(Usage(format!(
            "--change does not know {other}; it knows CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR"
        ))),
    }
    Ok(())
}

/// A command in Dockerfile notation: a JSON list, or a line for the shell.
fn command(text: &str) -> anyhow::Result<Vec<String>> {
    if text.starts_with('[') {
        return words("the command", text);
    }
    Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

/// A JSON list of words, or words with quotes as in a shell.
fn words(what: &str, text: &str) -> anyhow::Result<Vec<String>> {
    let text = text.trim();
    if text.starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|e| Usage(format!("{what}: {text:?} is no JSON list of words: {e}")).into());
    }
    let (mut words, mut current, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                current.get_or_insert_default();
            }
            (None | Some('"'), '\\') => current.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => words.extend(current.take()),
            (_, c) => current.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        bail!(Usage(format!("{what}: a quote in {text:?} is not closed")));
    }
    words.extend(current);
    Ok(words)
}

fn pairs(what: &str, text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    words(what, text)?
        .iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => bail!(Usage(format!("{what}: {word:?} is not of the form NAME=VALUE"))),
        })
        .collect()
}

/// Adds a variable, in place of one of the same name.
fn set_env(options: &mut ImportOptions, pair: &str) -> anyhow::Result<()> {
    let Some((name, _)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        bail!(Usage(format!("--env: {pair:?} is not of the form NAME=VALUE")));
    };
    let prefix = format!("{name}=");
    options.env.retain(|other| !other.starts_with(&prefix));
    options.env.push(pair.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn instructions() {
        let mut options = ImportOptions::default();
        for line in [
            "CMD [\"httpd\", \"-f\"]",
            "ENTRYPOINT exec /x $Y",
            "ENV A=1 B=\"two words\"",
            "ENV C the rest",
            "ENV A=2",
            "EXPOSE 80 53/udp",
            "LABEL a=b",
            "USER 1000:1000",
            "VOLUME [\"/data\"]",
            "WORKDIR /srv",
            "stopsignal SIGQUIT",
        ] {
            change(&mut options, line).unwrap();
        }
        assert_eq!(options.cmd, ["httpd", "-f"]);
        assert_eq!(options.entrypoint, ["/bin/sh", "-c", "exec /x $Y"]);
        assert_eq!(options.env, ["B=two words", "C=the rest", "A=2"]);
        assert_eq!(options.exposed_ports, ["80/tcp", "53/udp"]);
        assert_eq!(options.volumes, ["/data"]);
        assert_eq!((options.user.as_str(), options.working_dir.as_str()), ("1000:1000", "/srv"));
        assert_eq!(options.stop_signal, "SIGQUIT");
        for line in ["CMD", "RUN x", "ENV =x", "CMD [1", "LABEL x"] {
            assert!(change(&mut options, line).is_err(), "{line}");
        }
    }

    #[test]
    fn words_as_in_a_shell() {
        assert_eq!(words("x", r#"a 'b c' "d\"e" f\ g """#).unwrap(), ["a", "b c", "d\"e", "f g", ""]);
        assert_eq!(words("x", "").unwrap(), Vec::<String>::new());
        assert!(words("x", "'a").is_err());
    }
}
