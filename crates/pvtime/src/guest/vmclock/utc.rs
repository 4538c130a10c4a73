//! UTC around a leap second.

use crate::abi::vmclock::LeapIndicator;
use crate::guest::GuestError;
use crate::scale::ScaleError;

const DAY_SEC: u64 = 86_400;

/// A moment in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    /// Seconds since 1970-01-01 without leap seconds; an added one repeats the number of the second
    /// before it, 23:59:59.
    pub sec: u64,
    /// The rest, in units of 2^-64 s.
    pub frac_sec: u64,
    /// Whether this is the added second, 23:59:60.
    pub leap_second: bool,
}

/// The number of a UTC second, and whether it is an added one.
///
/// `reference_sec` is the second to which the indicator applies, and `sec` another on the same
/// count, which goes on evenly: the leap second that lies between the two is put in here. A
/// reference within 23:59:60 may have the number of the second before or of that after, since
/// specifications number it either way.
pub(super) fn with_leap_second(
    indicator: LeapIndicator,
    reference_sec: u64,
    sec: u64,
) -> Result<(u64, bool), GuestError> {
    match indicator {
        LeapIndicator::NONE | LeapIndicator::POST_POS | LeapIndicator::POST_NEG => Ok((sec, false)),
        LeapIndicator::PRE_POS => Ok(added_at(next_month_sec(reference_sec)?, sec)),
        LeapIndicator::PRE_NEG => {
            // The last second of the month, 23:59:59, is the one that is left out.
            let left_out = next_month_sec(reference_sec)? - 1;
            Ok((one_more_if(sec >= left_out, sec)?, false))
        }
        LeapIndicator::POS => match reference_sec % DAY_SEC {
            // Numbered as the second after: so are those that follow, one too high.
            0 => Ok(added_at(reference_sec, sec)),
            // Numbered as the second before: so are those that precede, one too low.
            86_399 => {
                let leap_second = sec == reference_sec;
                Ok((one_more_if(sec < reference_sec, sec)?, leap_second))
            }
            _ => Err(GuestError::LeapOutOfPlace { sec: reference_sec }),
        },
        indicator => Err(GuestError::LeapUnknown { indicator }),
    }
}

fn one_more_if(condition: bool, sec: u64) -> Result<u64, ScaleError> {
    sec.checked_add(condition.into())
        .ok_or(ScaleError::TimestampTooLate)
}

/// Where the even count's second `added` is 23:59:60.
fn added_at(added: u64, sec: u64) -> (u64, bool) {
    (sec - u64::from(sec >= added), sec == added)
}

/// The first second of the month after the one that `sec` is in.
fn next_month_sec(sec: u64) -> Result<u64, ScaleError> {
    // Years of this calendar begin in March, so that the leap day is the last of its year and the
    // months before it have a period of five: 31, 30, 31, 30, 31 days. Day 0 is 0000-03-01.
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let first_day_of_year = |year: u64| year * 365 + year / 4 - year / 100 + year / 400;
    let first_day_of_month = |month: u64| (month * 153 + 2) / 5;

    let day = sec / DAY_SEC + DAYS_TO_1970;
    let (era, day_of_era) = (day / DAYS_IN_400_YEARS, day % DAYS_IN_400_YEARS);
    // One too high at most, on the last days of a year.
    let guess = day_of_era / 365;
    let year = guess - u64::from(first_day_of_year(guess) > day_of_era);
    let day_of_year = day_of_era - first_day_of_year(year);
    let month = (day_of_year * 5 + 2) / 153;
    let next = if month == 11 {
        first_day_of_year(year + 1)
    } else {
        first_day_of_year(year) + first_day_of_month(month + 1)
    };
    (era * DAYS_IN_400_YEARS + next - DAYS_TO_1970)
        .checked_mul(DAY_SEC)
        .ok_or(ScaleError::TimestampTooLate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2017-01-01 00:00:00, before which the last leap second was added.
    const NEW_YEAR_2017: u64 = 1_483_228_800;

    #[test]
    fn months_end_where_a_calendar_says() {
        let mut day = 0;
        for year in 1970..2801u64 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let february = if leap { 29 } else { 28 };
            for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
                let next = (day + days) * DAY_SEC;
                for sec in [day * DAY_SEC, (day + 14) * DAY_SEC + 7, next - 1] {
                    assert_eq!(next_month_sec(sec), Ok(next), "{year}");
                }
                day += days;
            }
        }
        assert_eq!(next_month_sec(NEW_YEAR_2017 - 1), Ok(NEW_YEAR_2017));
    }

    /// What becomes of the seconds from 2 before to 2 after the end of 2016.
    fn around(indicator: LeapIndicator, reference_sec: u64) -> [(i64, bool); 5] {
        [0, 1, 2, 3, 4].map(|step| {
            let sec = NEW_YEAR_2017 - 2 + step;
            let (sec, leap) = with_leap_second(indicator, reference_sec, sec).unwrap();
            (sec.wrapping_sub(NEW_YEAR_2017).cast_signed(), leap)
        })
    }

    #[test]
    fn v10_no_leap_second_near_or_one_that_is_over() {
        for indicator in [
            LeapIndicator::NONE,
            LeapIndicator::POST_POS,
            LeapIndicator::POST_NEG,
        ] {
            let even = [(-2, false), (-1, false), (0, false), (1, false), (2, false)];
            assert_eq!(around(indicator, NEW_YEAR_2017 - 10), even);
        }
    }

    #[test]
    fn v10_a_second_is_added_at_the_end_of_the_month() {
        let added = [(-2, false), (-1, false), (-1, true), (0, false), (1, false)];
        let december = NEW_YEAR_2017 - 20 * DAY_SEC;
        assert_eq!(around(LeapIndicator::PRE_POS, december), added);
    }

    #[test]
    fn v10_a_second_is_left_out_at_the_end_of_the_month() {
        let left_out = [(-2, false), (0, false), (1, false), (2, false), (3, false)];
        let december = NEW_YEAR_2017 - 20 * DAY_SEC;
        assert_eq!(around(LeapIndicator::PRE_NEG, december), left_out);
    }

    #[test]
    fn v10_the_reference_is_within_the_added_second() {
        // Numbered as 00:00:00.
        let later = [(-2, false), (-1, false), (-1, true), (0, false), (1, false)];
        assert_eq!(around(LeapIndicator::POS, NEW_YEAR_2017), later);
        // Numbered as 23:59:59.
        let earlier = [(-1, false), (-1, true), (0, false), (1, false), (2, false)];
        assert_eq!(around(LeapIndicator::POS, NEW_YEAR_2017 - 1), earlier);
    }

    #[test]
    fn v10_an_added_second_at_noon_is_refused() {
        let sec = NEW_YEAR_2017 + DAY_SEC / 2;
        assert_eq!(
            with_leap_second(LeapIndicator::POS, sec, sec),
            Err(GuestError::LeapOutOfPlace { sec })
        );
        let indicator = LeapIndicator(6);
        assert_eq!(
            with_leap_second(indicator, sec, sec),
            Err(GuestError::LeapUnknown { indicator })
        );
    }

    #[test]
    fn the_end_of_time_is_an_error() {
        let last = u64::MAX;
        let too_late = Err(ScaleError::TimestampTooLate.into());
        for indicator in [LeapIndicator::PRE_POS, LeapIndicator::PRE_NEG] {
            assert_eq!(with_leap_second(indicator, last, last), too_late);
        }
        assert_eq!(with_leap_second(LeapIndicator::PRE_NEG, 0, last), too_late);
        assert_eq!(
            with_leap_second(LeapIndicator::PRE_POS, 0, last),
            Ok((last - 1, false))
        );
        assert_eq!(
            with_leap_second(LeapIndicator::NONE, 0, last),
            Ok((last, false))
        );
    }
}
