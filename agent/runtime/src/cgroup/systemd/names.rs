//! From `linux.cgroupsPath` to units and folders. See systemd.slice(5) and systemd.unit(5).

use super::Error;
use super::bus::Whose;

const DEFAULT_PREFIX: &str = "berth";
/// systemd.unit(5): "unit names ... must not exceed 255 characters".
const MAX_LENGTH: usize = 255;

/// The cgroup path of `slice:prefix:name`: the folders of all slices, then the scope. Every part may be empty, and so
/// may be the whole; the name is the container's id then, and the slice that of runc and crun.
///
/// # Errors
/// When the text is not of that form, or does not give names of units.
pub fn path_of(id: &str, cgroups_path: Option<&str>, whose: Whose) -> Result<String, Error> {
    let text = cgroups_path.unwrap_or_default();
    let bad = |reason: &str| Error::systemd("make a scope for", format!("{text:?}"), reason);
    let default = match whose {
        Whose::System => "system.slice",
        Whose::User => "user.slice",
    };
    let given = |part: &'_ str, or: &'_ str| if part.is_empty() { or.to_owned() } else { part.to_owned() };
    let (slice, prefix, name) = match text.split(':').collect::<Vec<_>>()[..] {
        [""] => (default.to_owned(), DEFAULT_PREFIX, id.to_owned()),
        [slice, prefix, name] => (given(slice, default), prefix, given(name, id)),
        _ => return Err(bad("with systemd, linux.cgroupsPath is slice:prefix:name")),
    };
    let folders = folders(&slice).ok_or_else(|| bad("its slice is not the name of a slice"))?;
    if name.ends_with(".slice") {
        return Err(bad("a container cannot be a slice"));
    }
    let scope = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    // systemd.unit(5): letters, digits and these; 255 characters at most.
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.is_empty() || scope.len() > MAX_LENGTH || !scope.chars().all(plain) {
        return Err(bad("that gives no valid name of a unit"));
    }
    Ok(format!("{folders}/{scope}"))
}

/// The folder of a slice: `a-b.slice` lies in `a.slice`, and `-.slice` is the root. Nothing for what is no slice.
pub fn folders(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice").filter(|_| slice.len() <= MAX_LENGTH)?;
    if stem == "-" {
        return Some(String::new());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || ":_.\\@".contains(c);
    let mut folders = String::new();
    let mut name = String::new();
    for part in stem.split('-') {
        if part.is_empty() || !part.chars().all(plain) {
            return None;
        }
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        folders.push_str(&format!("/{name}.slice"));
    }
    Some(folders)
}

/// The path of the slice that has one word more than its parent at each level; a dash in a word becomes an underscore, as
/// kubelet has it. Empty words are left out.
#[cfg(any(feature = "agent", test))]
pub fn slice_path(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().filter(|w| !w.is_empty()).map(|w| w.replace('-', "_")).collect();
    (1..=words.len()).map(|n| format!("/{}.slice", words[..n].join("-"))).collect()
}

/// A path's last two parts, which are the slice and the unit in it.
pub fn unit_of(path: &str) -> Option<(&str, &str)> {
    let (parents, unit) = path.rsplit_once('/')?;
    let slice = parents.rsplit('/').next().filter(|s| s.ends_with(".slice")).unwrap_or("-.slice");
    (unit.ends_with(".scope") || unit.ends_with(".slice")).then_some((slice, unit))
}

/// The `linux.cgroupsPath` of a scope's path for a runtime that is to ask systemd for it, `slice:prefix:name`. Nothing for
/// another path.
pub fn scope_words(path: &str) -> Option<String> {
    let (slice, unit) = unit_of(path)?;
    let (prefix, name) = unit.strip_suffix(".scope")?.split_once('-')?;
    path.ends_with(&format!("/{slice}/{unit}")).then(|| format!("{slice}:{prefix}:{name}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_for_another_runtime() {
        let path = slice_path(&["kubepods", "pod1-2"]) + "/berth-a1.scope";
        let words = scope_words(&path).unwrap();
        assert_eq!(words, "kubepods-pod1_2.slice:berth:a1");
        assert_eq!(path_of("x", Some(&words), Whose::System).unwrap(), path);
        for other in ["/kubepods/pod1/a1", "/a.slice", "/kubepods/x-y.scope", "/x-y.scope"] {
            assert_eq!(scope_words(other), None, "{other}");
        }
    }

    #[test]
    fn paths_and_back() {
        for (given, path, slice, scope) in [
            (None, "/system.slice/berth-x.scope", "system.slice", "berth-x.scope"),
            (
                Some("user-1000.slice:libpod:abc"),
                "/user.slice/user-1000.slice/libpod-abc.scope",
                "user-1000.slice",
                "libpod-abc.scope",
            ),
            (Some("::"), "/system.slice/x.scope", "system.slice", "x.scope"),
            (Some("-.slice:p:n"), "/p-n.scope", "-.slice", "p-n.scope"),
        ] {
            assert_eq!(path_of("x", given, Whose::System).unwrap(), path);
            assert_eq!(unit_of(path), Some((slice, scope)));
        }
        assert_eq!(path_of("x", None, Whose::User).unwrap(), "/user.slice/berth-x.scope");
        assert_eq!(unit_of("/a.slice/a-b.slice"), Some(("a.slice", "a-b.slice")));
    }

    #[test]
    fn slices_of_pods() {
        let path = slice_path(&["a-b", "", "kubepods", "pod1-2"]);
        assert_eq!(path, "/a_b.slice/a_b-kubepods.slice/a_b-kubepods-pod1_2.slice");
        assert_eq!(folders("a_b-kubepods-pod1_2.slice").as_deref(), Some(&*path));
        assert_eq!(slice_path(&[]), "");
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for bad in ["/a/b", "a:b", "a.slice:b:c:d", "a:b:c", "a--b.slice:p:n", "../x.slice:p:n", ".slice:p:n"]
        {
            assert!(path_of("x", Some(bad), Whose::System).is_err(), "{bad}");
        }
        for bad in ["a.slice:p:n/../m", "a.slice:p:n.slice", "a.slice:p/q:n"] {
            assert!(path_of("x", Some(bad), Whose::System).is_err(), "{bad}");
        }
        assert_eq!(unit_of("/berth/x"), None);
    }
}
