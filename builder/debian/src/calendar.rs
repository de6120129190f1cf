//! Dates as archives write them: `Sat, 09 Aug 2025 09:30:00 UTC` (RFC 5322 §3.3 with the zone names of RFC 5322 §4.3)
//! in, seconds since 1970-01-01T00:00:00Z out. Proleptic Gregorian calendar, no leap seconds.

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// Seconds since the epoch, or `None` for anything that is not such a date in the years 1970 to 9999.
pub fn parse_epoch_secs(text: &str) -> Option<u64> {
    let text = match text.split_once(',') {
        Some((_weekday, rest)) => rest,
        None => text,
    };
    let mut words = text.split_ascii_whitespace();
    let day: u32 = number(words.next()?, 2)?;
    let month_name = words.next()?;
    let month = MONTHS.iter().position(|m| *m == month_name)? as u32 + 1;
    let year_text = words.next()?;
    let year: u32 = number(year_text, 4)?;
    let mut clock = words.next()?.split(':');
    let (hour, minute): (u32, u32) = (number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    let second: u32 = clock.next().map_or(Some(0), |s| number(s, 2))?;
    let offset_secs: i64 = match words.next()? {
        "UTC" | "GMT" | "Z" | "UT" => 0,
        zone => zone_offset_secs(zone)?,
    };
    let in_range = year_text.len() == 4
        && (1970..=9999).contains(&year)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range || clock.next().is_some() || words.next().is_some() {
        return None;
    }
    let days = days_since_epoch(i64::from(year), i64::from(month), i64::from(day));
    let secs = days * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    u64::try_from(secs - offset_secs).ok()
}

/// `epoch_secs` in the form archives use, for people to read.
pub fn format_epoch_secs(epoch_secs: u64) -> String {
    let days = epoch_secs / 86_400;
    let (year, month, day) = civil_from_days(days);
    let secs = epoch_secs % 86_400;
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} UTC",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize - 1],
        secs / 3600,
        secs / 60 % 60,
        secs % 60
    )
}

fn number(text: &str, max_digits: usize) -> Option<u32> {
    let plain =
        !text.is_empty() && text.len() <= max_digits && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// `+0200` → 7200.
fn zone_offset_secs(zone: &str) -> Option<i64> {
    let (sign, digits) = match zone.as_bytes().first()? {
        b'+' => (1, &zone[1..]),
        b'-' => (-1, &zone[1..]),
        _ => return None,
    };
    let hhmm = i64::from(number(digits, 4)?);
    let valid = digits.len() == 4 && hhmm / 100 < 24 && hhmm % 100 < 60;
    valid.then_some(sign * (hhmm / 100 * 3600 + hhmm % 100 * 60))
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant's `days_from_civil`: years start in March, eras of 400 years.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_written() {
        for (text, epoch_secs) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", 0),
            ("Sat, 09 Aug 2025 09:30:00 UTC", 1_754_731_800),
            ("Thu, 29 Feb 2024 23:59:59 UTC", 1_709_251_199),
            ("Fri, 31 Dec 9999 23:59:59 UTC", 253_402_300_799),
        ] {
            assert_eq!(parse_epoch_secs(text), Some(epoch_secs), "{text}");
            assert_eq!(format_epoch_secs(epoch_secs), text);
        }
        assert_eq!(
            parse_epoch_secs("9 Aug 2025 11:30 +0200"),
            Some(1_754_731_800)
        );
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "tomorrow",
            "Sat, 32 Aug 2025 09:30:00 UTC",
            "Sat, 29 Feb 2025 09:30:00 UTC",
            "Sat, 09 Aug 25 09:30:00 UTC",
            "Sat, 09 Aug 2025 24:30:00 UTC",
            "Sat, 09 Aug 2025 09:30:00 MEZ",
            "Sat, 09 Aug 2025 09:30:00 +99999999",
            "Thu, 01 Jan 1970 00:00:00 +0200",
            "Sat, 09 Aug 2025 09:30:00 UTC and more",
            "Sat, 09 Äug 2025 09:30:00 é",
        ] {
            assert_eq!(parse_epoch_secs(text), None, "{text}");
        }
    }
}
