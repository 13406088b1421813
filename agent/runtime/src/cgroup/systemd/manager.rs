//! What systemd's manager is asked to do, see org.freedesktop.systemd1(5). Whatever starts a job waits for its end.

use super::bus::{Connection, Failure, MANAGER};
use super::message::{Value, Writer};

/// A property of a unit, by its name on D-Bus.
pub type Property = (String, Value);

/// What older systemds lack, and what is not lost without it: the files of the cgroup get these limits, too.
/// CollectMode came with 236, CPUQuotaPeriodUSec with 242, the last two with 244.
const RECENT: [&str; 4] = ["CollectMode", "CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes"];

/// Starts a transient unit and waits until it is there.
pub fn start(bus: &mut Connection, unit: &str, properties: Vec<Property>) -> Result<(), Failure> {
    let mut start = |properties: &[Property]| {
        let mut body = Writer::default();
        body.text(unit).text("fail");
        write(&mut body, properties);
        // Units to be started beside this one: none.
        body.array(8, [(); 0], |_, ()| {});
        match job(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", body.clone()) {
            // One of that name has failed before, and was kept to be looked at.
            Err(failure) if failure.is("UnitExists") => {
                reset(bus, unit)?;
                job(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
            }
            other => other,
        }
    };
    without_unknown(properties, &mut start)
}

/// Starts a transient unit that stays as it is, but for `limits`, when it is there already.
pub fn ensure(
    bus: &mut Connection,
    unit: &str,
    mut first: Vec<Property>,
    limits: Vec<Property>,
) -> Result<(), Failure> {
    first.extend(limits.iter().cloned());
    match start(bus, unit, first) {
        Err(failure) if failure.is("UnitExists") => set(bus, unit, limits),
        other => other,
    }
}

/// Sets properties of a unit until the next boot.
pub fn set(bus: &mut Connection, unit: &str, properties: Vec<Property>) -> Result<(), Failure> {
    without_unknown(properties, &mut |properties| {
        let mut body = Writer::default();
        body.text(unit).bool(true);
        write(&mut body, properties);
        bus.manager("SetUnitProperties", "sba(sv)", body).map(drop)
    })
}

/// Tries again without those of [`RECENT`] that systemd says it does not know.
fn without_unknown(
    mut properties: Vec<Property>,
    ask: &mut impl FnMut(&[Property]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        if properties.is_empty() {
            return Ok(());
        }
        let failure = match ask(&properties) {
            Err(Failure::Refused(name, text)) if name.ends_with(".PropertyReadOnly") => (name, text),
            other => return other,
        };
        let unknown =
            |name: &str| RECENT.contains(&name) && failure.1.split([' ', ',']).any(|word| word == name);
        let before = properties.len();
        properties.retain(|(name, _)| !unknown(name));
        if properties.len() == before {
            return Err(Failure::Refused(failure.0, failure.1));
        }
    }
}

/// Stops a unit and has systemd forget it. One that does not exist is fine.
pub fn stop(bus: &mut Connection, unit: &str) -> Result<(), Failure> {
    let mut body = Writer::default();
    body.text(unit).text("replace");
    match job(bus, "StopUnit", "ss", body) {
        Err(failure) if failure.is("NoSuchUnit") => return Ok(()),
        other => other?,
    }
    reset(bus, unit)
}

/// The cgroup that the manager's own tree starts at, without a slash at its end.
pub fn root(bus: &mut Connection) -> Result<String, Failure> {
    Ok(property(bus, "ControlGroup")?.trim_end_matches('/').to_owned())
}

/// Whether the machine, or the container that this is PID 1 of, is about to end.
#[cfg(feature = "agent")]
pub fn stopping(bus: &mut Connection) -> Result<bool, Failure> {
    Ok(property(bus, "SystemState")? == "stopping")
}

/// A property of the manager that is a text.
fn property(bus: &mut Connection, name: &str) -> Result<String, Failure> {
    let mut body = Writer::default();
    body.text(MANAGER).text(name);
    let body = bus.systemd("org.freedesktop.DBus.Properties", "Get", "ss", body)?;
    let mut reader = body.reader();
    match (body.signature.as_str(), reader.signature()?) {
        ("v", "s") => reader.text().map_err(Failure::from),
        _ => Err(Failure::Job(format!("systemd does not tell its {name}"))),
    }
}

fn write(body: &mut Writer, properties: &[Property]) {
    body.array(8, properties, |w, (name, value)| {
        w.structure().text(name).variant(value);
    });
}

/// Calls a method that starts a job, and waits for the job's end. Signals are asked for before the job exists, so that
/// none is missed.
fn job(bus: &mut Connection, method: &str, signature: &str, body: Writer) -> Result<(), Failure> {
    bus.subscribe("JobRemoved")?;
    let job = bus.manager(method, signature, body)?.reader().text()?;
    loop {
        let (name, body) = bus.signal()?;
        if name != "JobRemoved" || body.signature != "uoss" {
            continue;
        }
        let mut reader = body.reader();
        reader.u32()?;
        let path = reader.text()?;
        reader.text()?;
        if path == job {
            return match reader.text()?.as_str() {
                "done" => Ok(()),
                other => Err(Failure::Job(format!("its job ended as {other:?}"))),
            };
        }
    }
}

/// Forgets a unit that failed; for others there is nothing to forget.
fn reset(bus: &mut Connection, unit: &str) -> Result<(), Failure> {
    let mut body = Writer::default();
    body.text(unit);
    match bus.manager("ResetFailedUnit", "s", body) {
        Err(failure) if failure.is("NoSuchUnit") => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_systemd_gets_what_it_knows() {
        let property = |name: &str| (name.to_owned(), Value::U64(1));
        let all = vec![property("CPUQuotaPeriodUSec"), property("AllowedCPUs"), property("MemoryMax")];
        let refuse = |name: &str| {
            let text = format!("Cannot set property {name}, or unknown property.");
            Err(Failure::Refused("org.freedesktop.DBus.Error.PropertyReadOnly".to_owned(), text))
        };
        let mut asked = Vec::new();
        let mut old = |list: &[Property]| {
            asked.push(list.len());
            let known = |name: &str| ["MemoryMax", "TasksMax"].contains(&name);
            list.iter().find(|(name, _)| !known(name)).map_or(Ok(()), |(name, _)| refuse(name))
        };
        assert!(without_unknown(all, &mut old).is_ok());
        assert!(without_unknown(vec![property("MemoryMaxx")], &mut old).is_err(), "a wrong one is an error");
        assert_eq!(asked, [3, 2, 1, 1]);
    }
}
