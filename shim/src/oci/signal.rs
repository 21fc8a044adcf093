//! Stop signals as images write them.

use oci_spec::image::ImageConfiguration;

/// Number of the image's `StopSignal`, given by name or number (OCI image specification, `config.StopSignal`); `None`
/// when it has none that Linux knows.
#[must_use]
pub fn stop_signal(image: &ImageConfiguration) -> Option<u32> {
    let text = image
        .config()
        .as_ref()?
        .stop_signal()
        .as_ref()?
        .trim()
        .to_ascii_uppercase();
    signal_number(&text)
}

/// Number of a signal given by number or by name, with or without `SIG`, in upper case.
#[must_use]
pub fn signal_number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let real_time = |base: u32, offset: &str| -> Option<u32> {
        let offset = if offset.is_empty() {
            0
        } else {
            offset.parse::<i64>().ok()?
        };
        let number = i64::from(base).checked_add(offset)?;
        u32::try_from(number).ok().filter(|n| (34..=64).contains(n))
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(34, offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(64, offset);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    u32::try_from(signal as i32).ok()
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signal_number_of_each_form_gives_the_number() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMIN+99", None),
            ("65", None),
            ("SIGNONE", None),
        ] {
            assert_eq!(signal_number(text), want, "{text}");
        }
    }
}
