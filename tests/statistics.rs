//! Statistics against scikit-learn and scipy (tests/statistics/, made by its script).

use serde_json::Value;
use tuco::metrics::{
    auc, bootstrap, delong, mean, newcombe, pearson, spearman, tpr_at_fpr, wilson, wilson_of_several,
};

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn statistics_agree_with_scikit_learn_and_scipy() {
    let gold: Value = serde_json::from_str(include_str!("statistics/gold.json")).unwrap();
    let cases = gold["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let (negative, positive) = (numbers(&case["negative"]), numbers(&case["positive"]));
        let same = |found: f64, expected: &Value| (found - expected.as_f64().unwrap()).abs() < 1e-12;
        assert!(same(auc(&negative, &positive).unwrap(), &case["auc"]));
        let intervals = [
            ("delong", delong(&negative, &positive)),
            ("newcombe", auc(&negative, &positive).map(|auc| newcombe(auc, negative.len(), positive.len()))),
        ];
        for (name, interval) in intervals {
            let (low, high) = interval.unwrap();
            let expected = &case[name];
            assert!(same(low, &expected[0]) && same(high, &expected[1]), "{name}: {low} {high} {expected}");
        }
        assert!(same(tpr_at_fpr(&negative, &positive, 0.05).unwrap(), &case["tpr_at_5_percent"]));
        assert!(same(tpr_at_fpr(&negative, &positive, 0.2).unwrap(), &case["tpr_at_20_percent"]));
        // Both are random: their quantiles have an error of about 0.005 here.
        let (low, high) = bootstrap(&negative, &positive, 4000, 3).unwrap();
        let expected = numbers(&case["bootstrap"]);
        let near = |found: f64, expected: f64| (found - expected).abs() < 0.02;
        assert!(near(low, expected[0]) && near(high, expected[1]), "{low} {high} {expected:?}");
    }
}

#[test]
fn means_and_correlations_agree_with_scipy() {
    let gold: Value = serde_json::from_str(include_str!("statistics/gold.json")).unwrap();
    for case in gold["correlations"].as_array().unwrap() {
        let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
        let (center, interval) = mean(&a).unwrap();
        let (low, high) = interval.unwrap();
        let found = [center, low, high, pearson(&a, &b).unwrap(), spearman(&a, &b).unwrap()];
        let mut expected = numbers(&case["mean"]);
        expected.extend([&case["pearson"], &case["spearman"]].map(|value| value.as_f64().unwrap()));
        let same = found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-12);
        assert!(same, "{found:?} {expected:?}");
    }
    assert_eq!((mean(&[]), mean(&[2.0])), (None, Some((2.0, None))));
    assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), None);
}

#[test]
fn intervals_of_shares_agree_with_scipy() {
    let gold: Value = serde_json::from_str(include_str!("statistics/gold.json")).unwrap();
    for case in gold["shares"].as_array().unwrap() {
        let [count, of] = ["count", "of"].map(|name| case[name].as_f64().unwrap());
        let share = count / of;
        for (name, (low, high)) in
            [("wilson", wilson(share, of)), ("wilson_of_nine", wilson_of_several(share, of, 9))]
        {
            let expected = numbers(&case[name]);
            let same = |found: f64, expected: f64| (found - expected).abs() < 1e-12;
            assert!(same(low, expected[0]) && same(high, expected[1]), "{name}: {low} {high} {case}");
        }
    }
}

#[test]
fn a_seed_makes_an_interval() {
    let (negative, positive) = ([0.1, 0.4, 0.2, 0.5], [0.3, 0.6, 0.9]);
    assert_eq!(bootstrap(&negative, &positive, 100, 1), bootstrap(&negative, &positive, 100, 1));
    assert_ne!(bootstrap(&negative, &positive, 100, 1), bootstrap(&negative, &positive, 100, 2));
    assert_eq!((bootstrap(&[], &positive, 100, 1), delong(&[1.0], &positive)), (None, None));
}
