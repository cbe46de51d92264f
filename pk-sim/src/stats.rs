//! Statistics of samples.

/// Numbers whose mean and percentiles are computed exactly.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    sorted: Vec<f64>,
}

impl Sample {
    /// Creates a sample of these numbers, in any order. Those that are not finite are left out.
    pub fn new(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> =
            numbers.into_iter().filter(|number| number.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    /// Returns the number of numbers.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Returns whether there are no numbers.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Returns the arithmetic mean; `None` without numbers.
    pub fn mean(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.sorted.iter().sum::<f64>() / self.sorted.len() as f64)
    }

    /// Returns the smallest number that is not smaller than `percent` % of the numbers (the nearest
    /// rank); `None` without numbers. `percent` is 0–100.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let rank = (percent.clamp(0.0, 100.0) / 100.0 * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied()
    }

    /// Returns the smallest number; `None` without numbers.
    pub fn min(&self) -> Option<f64> {
        self.sorted.first().copied()
    }

    /// Returns the largest number; `None` without numbers.
    pub fn max(&self) -> Option<f64> {
        self.sorted.last().copied()
    }

    /// Returns all numbers, ascending.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the nearest-rank method: 15, 20, 35, 40, 50.
    #[test]
    fn percentiles_are_those_computed_by_hand() {
        let sample = Sample::new([40.0, 15.0, 50.0, 35.0, 20.0, f64::NAN]);
        let ranks = [(0.0, 15.0), (5.0, 15.0), (20.0, 15.0), (30.0, 20.0), (40.0, 20.0)];
        for (percent, expected) in
            ranks.into_iter().chain([(50.0, 35.0), (95.0, 50.0), (100.0, 50.0)])
        {
            assert_eq!(sample.percentile(percent), Some(expected), "{percent}");
        }
        assert_eq!((sample.mean(), sample.len()), (Some(32.0), 5));
        assert_eq!((sample.min(), sample.max()), (Some(15.0), Some(50.0)));
        // 95 % of 1 to 100 are the first 95; one number is every percentile of itself.
        let hundred = Sample::new((1..=100).map(f64::from));
        assert_eq!((hundred.percentile(95.0), hundred.percentile(50.0)), (Some(95.0), Some(50.0)));
        assert_eq!(Sample::new([7.0]).percentile(95.0), Some(7.0));
        assert_eq!((Sample::default().percentile(50.0), Sample::default().mean()), (None, None));
    }
}
