module {
  func.func @main(%arg0: tensor<4x8xf32>) -> tensor<4x8xf32> {
    %0 = "mx.max"(%arg0) {axes = array<i64: 1>} : (tensor<4x8xf32>) -> tensor<4xf32>
    %1 = "mx.reshape"(%0) {shape = array<i64: 4, 1>} : (tensor<4xf32>) -> tensor<4x1xf32>
    %2 = "mx.subtract"(%arg0, %1) : (tensor<4x8xf32>, tensor<4x1xf32>) -> tensor<4x8xf32>
    %3 = "mx.exp"(%2) : (tensor<4x8xf32>) -> tensor<4x8xf32>
    %4 = "mx.sum"(%3) {axes = array<i64: 1>} : (tensor<4x8xf32>) -> tensor<4xf32>
    %5 = "mx.reshape"(%4) {shape = array<i64: 4, 1>} : (tensor<4xf32>) -> tensor<4x1xf32>
    %6 = "mx.divide"(%3, %5) : (tensor<4x8xf32>, tensor<4x1xf32>) -> tensor<4x8xf32>
    return %6 : tensor<4x8xf32>
  }
}
